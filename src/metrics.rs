//! Every metric, named once. Labels are bounded by the config: a client cannot make up a new one.

use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// The label of a model that no config names.
pub const OTHER: &str = "_other";
const REQUEST: [&str; 5] = ["op", "model", "provider", "status_class", "end"];

#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    pub requests: IntCounterVec,
    pub duration: HistogramVec,
    pub overhead: Histogram,
    pub first_audio: HistogramVec,
    pub in_flight: IntGauge,
    pub tunnels: IntGauge,
    pub connections: IntGauge,
    pub upstream_errors: IntCounterVec,
    pub failovers: IntCounterVec,
    pub peer_healthy: IntGaugeVec,
    pub peer_breaker: IntGaugeVec,
    pub key_set_aside: IntGaugeVec,
    pub head_refusals: IntCounterVec,
    pub credential_refusals: IntCounter,
    pub unrecorded_refusals: IntCounter,
    pub spool_bytes: IntGauge,
    pub spool_files: IntGauge,
    pub spool_refusals: IntCounterVec,
    pub records_waiting: IntGauge,
    pub records_writable: IntGauge,
    pub reloads: IntCounterVec,
    pub reload_successful: IntGauge,
}

impl Metrics {
    /// Registers everything.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let r = &registry;
        register(r, build_info()?)?;
        let overhead = HistogramOpts::new("aulos_overhead_seconds", "Time before forwarding that was ours.")
            .buckets(vec![20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3]);
        let duration = HistogramOpts::new("aulos_request_duration_seconds", "From the head to the last byte.")
            .buckets(prometheus::exponential_buckets(0.01, 2.0, 14)?);
        let first =
            HistogramOpts::new("aulos_time_to_first_audio_seconds", "From the head to the first byte of speech.")
                .buckets(vec![0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 4.0, 8.0]);
        let counters = |name, help, labels: &[&str]| register(r, IntCounterVec::new(Opts::new(name, help), labels)?);
        let counter = |name, help| register(r, IntCounter::with_opts(Opts::new(name, help))?);
        let gauges = |name, help, labels: &[&str]| register(r, IntGaugeVec::new(Opts::new(name, help), labels)?);
        let gauge = |name, help| register(r, IntGauge::with_opts(Opts::new(name, help))?);
        Ok(Self {
            requests: counters("aulos_requests_total", "Requests that have ended.", &REQUEST)?,
            duration: register(r, HistogramVec::new(duration, &["op"])?)?,
            overhead: register(r, Histogram::with_opts(overhead)?)?,
            first_audio: register(r, HistogramVec::new(first, &["model", "provider"])?)?,
            in_flight: gauge("aulos_requests_in_flight", "Requests that are being served.")?,
            tunnels: gauge("aulos_tunnels", "WebSockets that are relayed, or asked for.")?,
            connections: gauge("aulos_connections", "Client connections that are open.")?,
            upstream_errors: counters("aulos_upstream_errors_total", "Attempts that failed.", &["provider", "reason"])?,
            failovers: counters(
                "aulos_failovers_total",
                "Requests that went on to another candidate after an answer, by the provider that gave it.",
                &["provider", "reason"],
            )?,
            peer_healthy: gauges("aulos_peer_healthy", "Whether a peer's probes succeed.", &["provider", "peer"])?,
            peer_breaker: gauges("aulos_peer_breaker", "0 closed, 1 half open, 2 open.", &["provider", "peer"])?,
            key_set_aside: gauges(
                "aulos_provider_key_set_aside",
                "1 limited, 2 refused, 0 in use.",
                &["provider", "key"],
            )?,
            head_refusals: counters(
                "aulos_head_refusals_total",
                "Request heads refused before they reached a stage.",
                &["code"],
            )?,
            credential_refusals: counter("aulos_credential_refusals_total", "Requests refused for their credential.")?,
            unrecorded_refusals: counter(
                "aulos_unrecorded_refusals_total",
                "Requests refused without an audit record: a flood without keys, or no room for records.",
            )?,
            spool_bytes: gauge("aulos_spool_bytes", "Bytes of uploads that are kept now.")?,
            spool_files: gauge("aulos_spool_files", "Uploads that are kept in a file now.")?,
            spool_refusals: counters(
                "aulos_spool_refusals_total",
                "Uploads that could not be kept, or no longer.",
                &["reason"],
            )?,
            records_waiting: gauge(
                "aulos_records_waiting",
                "Requests whose records are not on disk yet, those in flight included.",
            )?,
            records_writable: gauge("aulos_records_writable", "0 while requests are refused for it.")?,
            reloads: counters("aulos_config_reloads_total", "Reloads of the config.", &["result"])?,
            reload_successful: gauge("aulos_config_last_reload_successful", "0 while a bad file is ignored.")?,
            registry,
        })
    }

    /// Everything in Prometheus' text format.
    pub fn text(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

fn build_info() -> prometheus::Result<IntGauge> {
    let version = Opts::new("aulos_build_info", "The version that runs; always 1.");
    let info = IntGauge::with_opts(version.const_label("version", env!("CARGO_PKG_VERSION")))?;
    info.set(1);
    Ok(info)
}

fn register<M: prometheus::core::Collector + Clone + 'static>(registry: &Registry, metric: M) -> prometheus::Result<M> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_registered_under_its_own_name() {
        let metrics = Metrics::new().expect("names do not clash");
        metrics.requests.with_label_values(&["speech", OTHER, "openai", "2xx", "complete"]).inc();
        let text = String::from_utf8(metrics.text().expect("encodes")).expect("text");
        assert!(text.contains("aulos_requests_total{end=\"complete\",model=\"_other\""), "{text}");
        assert!(text.contains("aulos_build_info"));
    }
}
