//! One row of the table: what was measured, what it should be, whether it is.

use std::ops::RangeInclusive;

pub(crate) struct Finding {
    figure: &'static str,
    what: String,
    measured: String,
    target: String,
    holds: bool,
}

impl Finding {
    pub(crate) fn at_most(
        figure: &'static str,
        what: impl Into<String>,
        measured: f64,
        limit: f64,
        unit: &str,
    ) -> Self {
        let holds = measured <= limit;
        let (measured, target) = (format!("{measured:.2} {unit}"), format!("≤ {limit} {unit}"));
        Self { figure, what: what.into(), measured, target, holds }
    }

    pub(crate) fn at_least(
        figure: &'static str,
        what: impl Into<String>,
        measured: f64,
        limit: f64,
        unit: &str,
    ) -> Self {
        let holds = measured >= limit;
        let (measured, target) = (format!("{measured:.2} {unit}"), format!("≥ {limit} {unit}"));
        Self { figure, what: what.into(), measured, target, holds }
    }

    /// All of what was measured lies between two values.
    pub(crate) fn between(
        figure: &'static str,
        what: impl Into<String>,
        measured: RangeInclusive<f64>,
        target: RangeInclusive<f64>,
        unit: &str,
    ) -> Self {
        let holds = target.contains(measured.start()) && target.contains(measured.end());
        let show = |range: &RangeInclusive<f64>, digits| {
            let (start, end) = (range.start(), range.end());
            format!("{start:.digits$} to {end:.digits$} {unit}")
        };
        Self { figure, what: what.into(), measured: show(&measured, 2), target: show(&target, 1), holds }
    }

    pub(crate) fn none(figure: &'static str, what: impl Into<String>, count: u64) -> Self {
        Self { figure, what: what.into(), measured: count.to_string(), target: "0".to_owned(), holds: count == 0 }
    }

    /// No more than `apart` from what it was.
    pub(crate) fn back(figure: &'static str, what: impl Into<String>, start: u64, end: u64, apart: u64) -> Self {
        let (measured, target) = (format!("{start} → {end}"), format!("± {apart}"));
        Self { figure, what: what.into(), measured, target, holds: start.abs_diff(end) <= apart }
    }

    pub(crate) fn holds(&self) -> bool {
        self.holds
    }

    pub(crate) fn row(&self) -> Vec<String> {
        let verdict = if self.holds { "pass" } else { "FAIL" };
        [self.figure, &self.what, &self.measured, &self.target, verdict].map(str::to_owned).to_vec()
    }
}
