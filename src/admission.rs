//! The stages up to the moment a request's bytes may flow: its body is read as far as it has to be, and it is decided
//! where it goes.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderName, HeaderValue, Method, Version, header};
use pingora_core::protocols::http::ServerSession;

use crate::body::intake::Intake;
use crate::body::read::{self, Failed};
use crate::body::spool::{self, Spool, Spools};
use crate::config::settings::Provider;
use crate::exchange::Admitted;
use crate::refusal::Refusal;
use crate::stage::authenticate::Caller;
use crate::stage::edit::{self, Known, Place};
use crate::stage::form::Form;
use crate::stage::hops;
use crate::stage::inspect::{self, Call, Named};
use crate::stage::passthrough;
use crate::stage::route::{self, Again, Plan};
use crate::state::State;
use crate::surface::Endpoint;
use crate::wire::multipart::Boundary;

/// The client says that the request may be sent twice.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What a head asks for, of which the body is still to be read.
pub struct Asks<'a> {
    pub state: &'a State,
    pub caller: &'a Caller,
    pub endpoint: Endpoint,
    pub named: Named,
}

/// What was admitted, its body as far as it has been read, and when that was.
pub type Asked = (Admitted, Intake, Instant);

/// Bytes that pass through to `rest`, a path at a provider. The body is not looked at, and kept only where the client says
/// that it may be sent twice.
pub async fn pass(
    state: &State,
    caller: &Caller,
    (provider, rest): (&Arc<Provider>, &str),
    client: &mut ServerSession,
    spools: &Arc<Spools>,
) -> Result<Asked, Failed> {
    let is_bodiless = client.is_body_done();
    let head = client.req_header();
    let path = passthrough::target(&provider.base_url.path, rest);
    passthrough::permit(state, caller, provider, rest, &path)?;
    if state.anonymous.is_some() && head.headers.contains_key(header::ORIGIN) {
        return Err(Refusal::Forbidden("pass anything through for a web page, as no key was asked for").into());
    }
    let is_websocket = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"websocket");
    // Without `Connection` it is somebody's else, who does not know that this connection would be switched.
    let upgrade = client.is_upgrade_req()
        && head.method == Method::GET
        && head.headers.get(header::UPGRADE).is_some_and(is_websocket)
        && hops::is_named(&head.headers, "upgrade");
    let pass = passthrough::pass(provider, &path, head.uri.query(), &head.headers, upgrade);
    let declared = read::declared(head, usize::MAX)?;
    let is_unframed = head.version == Version::HTTP_2 && declared.is_none();
    if is_unframed && matches!(head.method, Method::GET | Method::HEAD) && !is_bodiless {
        return Err(Refusal::InvalidHead("a body of that method has to have a length".into()).into());
    }
    let may_repeat = !upgrade && head.headers.contains_key(IDEMPOTENCY_KEY);
    read::invite(client).await?;
    let (again, intake) = if may_repeat {
        let mut intake = Intake::new(spool(state, spools), usize::MAX, declared);
        intake.keep_for_replay(state.settings.spool.replay_bytes);
        (Again::Failed, intake)
    } else {
        (Again::Unsent, Intake::passing())
    };
    let (call, plan) = passthrough::plan(provider, pass, again);
    let known = Known { len: declared, model: Place::Unknown, form: None };
    Ok((Admitted::new(call, plan, known), intake, Instant::now()))
}

fn spool(state: &State, spools: &Arc<Spools>) -> Spool {
    let settings = &state.settings.spool;
    let bounds = spool::Bounds { memory: settings.memory_bytes, total: settings.total_bytes as u64 };
    Spool::new(Arc::clone(spools), bounds)
}

impl Asks<'_> {
    /// JSON is read whole, and is valid, before anything is forwarded.
    pub async fn json(self, client: &mut ServerSession) -> Result<Asked, Failed> {
        let settings = &self.state.settings;
        let limit = settings.limits.body(self.endpoint);
        let body = read::json(client, limit, settings.timeouts.idle).await?;
        let read = Instant::now();
        let call = inspect::call(self.endpoint, self.named, &body.bytes, &body.members)?;
        let mut plan = route::plan(self.state, self.caller, (&call).into())?;
        plan.keep_able(self.state, &call)?;
        let known = Known { len: Some(body.bytes.len() as u64), model: Place::Unknown, form: None };
        Ok((Admitted::new(call, plan, known), Intake::whole(body.bytes), read))
    }

    /// A form is read as far as it has to be: until it is known where it goes, and what has to change on the way.
    pub async fn form(
        self,
        client: &mut ServerSession,
        boundary: Boundary,
        spools: &Arc<Spools>,
    ) -> Result<Asked, Failed> {
        let settings = &self.state.settings;
        let max = settings.limits.body(self.endpoint);
        let declared = read::declared(client.req_header(), max)?;
        // Where the head names the model, what can be refused is refused before the upload.
        let unread = self.named.model.is_some() && {
            let (call, plan) = self.routed(&boundary, None)?;
            let replay = plan.replay_bytes(self.state);
            edit::passes_unread(&call, plan.first().body_model(), declared, settings.spool.memory_bytes, replay)
        };
        read::invite(client).await?;
        let mut intake = Intake::new(spool(self.state, spools), max, declared);
        let mut form = Form::new(&boundary);
        let is_enough = |form: &Form| unread || form.model().is_some();
        let ended = read::form(client, settings.timeouts.idle, &mut intake, &mut form, is_enough).await?;
        let read = Instant::now();
        let (call, plan) = self.routed(&boundary, form.model().map(|model| model.name.as_str()))?;
        intake.keep_for_replay(plan.replay_bytes(self.state));
        let len = if ended { Some(intake.len()) } else { declared };
        let known = Known { len, model: Place::of(&form), form: Some(form) };
        Ok((Admitted::new(call, plan, known), intake, read))
    }

    fn routed(&self, boundary: &Boundary, inside: Option<&str>) -> Result<(Call, Plan), Refusal> {
        let call = inspect::upload(self.endpoint, self.named.clone(), boundary.clone(), inside)?;
        let plan = route::plan(self.state, self.caller, (&call).into())?;
        Ok((call, plan))
    }
}
