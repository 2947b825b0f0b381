//! An utterance on its way from the engine to the client: audio in the format asked for, piece by piece.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::engine::{Engines, Failure};
use super::request::{Format, Utterance};
use super::wave;

/// Pieces that may wait between two programs, or for the client.
const PIECES_WAITING_MAX: usize = 4;

/// Dropping it ends what works for it.
pub(super) struct Sound {
    first: Option<Bytes>,
    pieces: mpsc::Receiver<Bytes>,
    tasks: JoinSet<Result<(), Failure>>,
}

impl Sound {
    /// Begins to speak. Ready when there is something to hear: until then every failure is told here.
    pub(super) async fn begin(engines: &Arc<Engines>, utterance: Utterance) -> Result<Self, Failure> {
        let format = utterance.format;
        let (to, mut pieces) = mpsc::channel(PIECES_WAITING_MAX);
        let mut tasks = JoinSet::new();
        let speaking = engines.clone();
        tasks.spawn(async move { speaking.speak(&utterance, to).await });
        let Some(pcm) = pieces.recv().await else {
            all_well(&mut tasks).await?;
            return Err(Failure::Nothing);
        };
        if let Some(encoder) = engines.encoder(format)? {
            let (to, encoded) = mpsc::channel(PIECES_WAITING_MAX);
            tasks.spawn(encoder.run(pcm, pieces, to));
            return Ok(Self { first: None, pieces: encoded, tasks });
        }
        let first = match format {
            Format::Wav => [&wave::HEAD[..], &pcm].concat().into(),
            _ => pcm,
        };
        Ok(Self { first: Some(first), pieces, tasks })
    }

    /// The next piece. `None` is the end, and only if everybody who worked on it ended well.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        match self.pieces.recv().await {
            Some(piece) => Ok(Some(piece)),
            None => all_well(&mut self.tasks).await.map(|()| None),
        }
    }
}

async fn all_well(tasks: &mut JoinSet<Result<(), Failure>>) -> Result<(), Failure> {
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap_or_else(|panic| {
            log::error!("demo: a speaking task was lost: {panic}");
            Err(Failure::Silent)
        })?;
    }
    Ok(())
}
