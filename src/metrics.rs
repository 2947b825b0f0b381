//! Every metric, named once. Labels are bounded by the config: a client cannot make up a new one.

use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

/// The label of a model that no config names.
pub const OTHER: &str = "_other";

#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    pub requests: IntCounterVec,
    pub duration: HistogramVec,
    pub overhead: Histogram,
    pub first_audio: HistogramVec,
    pub in_flight: IntGauge,
    pub connections: IntGauge,
    pub upstream_errors: IntCounterVec,
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
        Ok(Self {
            requests: register(
                r,
                counters(
                    "aulos_requests_total",
                    "Requests that have ended.",
                    &["op", "model", "provider", "status_class", "end"],
                )?,
            )?,
            duration: register(r, HistogramVec::new(duration, &["op"])?)?,
            overhead: register(r, Histogram::with_opts(overhead)?)?,
            first_audio: register(r, HistogramVec::new(first, &["model", "provider"])?)?,
            in_flight: register(r, gauge("aulos_requests_in_flight", "Requests that are being served.")?)?,
            connections: register(r, gauge("aulos_connections", "Client connections that are open.")?)?,
            upstream_errors: register(
                r,
                counters(
                    "aulos_upstream_errors_total",
                    "Attempts at a provider that failed.",
                    &["provider", "reason"],
                )?,
            )?,
            head_refusals: register(
                r,
                counters("aulos_head_refusals_total", "Request heads refused before they reached a stage.", &["code"])?,
            )?,
            credential_refusals: register(
                r,
                counter("aulos_credential_refusals_total", "Requests refused for their credential.")?,
            )?,
            unrecorded_refusals: register(
                r,
                counter(
                    "aulos_unrecorded_refusals_total",
                    "Requests refused without an audit record: a flood without keys, or no room for records.",
                )?,
            )?,
            spool_bytes: register(r, gauge("aulos_spool_bytes", "Bytes of uploads that are kept now.")?)?,
            spool_files: register(r, gauge("aulos_spool_files", "Uploads that are kept in a file now.")?)?,
            spool_refusals: register(
                r,
                counters("aulos_spool_refusals_total", "Uploads that could not be kept, or no longer.", &["reason"])?,
            )?,
            records_waiting: register(
                r,
                gauge(
                    "aulos_records_waiting",
                    "Requests whose records are not on disk yet, those in flight included.",
                )?,
            )?,
            records_writable: register(r, gauge("aulos_records_writable", "0 while requests are refused for it.")?)?,
            reloads: register(r, counters("aulos_config_reloads_total", "Reloads of the config.", &["result"])?)?,
            reload_successful: register(
                r,
                gauge("aulos_config_last_reload_successful", "0 while a bad file is ignored.")?,
            )?,
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

fn counters(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

fn counter(name: &str, help: &str) -> prometheus::Result<IntCounter> {
    IntCounter::with_opts(Opts::new(name, help))
}

fn gauge(name: &str, help: &str) -> prometheus::Result<IntGauge> {
    IntGauge::with_opts(Opts::new(name, help))
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
