//! Linear warm-up, then a cosine to the final learning rate (METHOD §5).

use crate::config::OptimConfig;

/// The learning rate as a function of the step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Schedule {
    peak: f64,
    last: f64,
    warmup: usize,
    steps: usize,
}

impl Schedule {
    /// The schedule of a training stage.
    pub(super) fn new(config: &OptimConfig) -> Self {
        Self {
            peak: config.learning_rate,
            last: config.final_learning_rate,
            warmup: config.warmup,
            steps: config.steps,
        }
    }

    /// The learning rate of step `step`, counted from 0.
    pub(super) fn at(&self, step: usize) -> f64 {
        if step < self.warmup {
            // The first step has a learning rate already: one of 0 would be wasted.
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }

        let done = (step - self.warmup) as f64;
        let span = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * (done / span).min(1.0)).cos());
        self.last + (self.peak - self.last) * cosine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_rises_and_the_cosine_falls_to_the_end() {
        let schedule = Schedule { peak: 1.0, last: 0.1, warmup: 10, steps: 110 };
        assert!((schedule.at(0) - 0.1).abs() < 1e-12);
        assert!((schedule.at(9) - 1.0).abs() < 1e-12);
        assert!((schedule.at(10) - 1.0).abs() < 1e-12);
        assert!((schedule.at(60) - 0.55).abs() < 1e-12);
        assert!((schedule.at(110) - 0.1).abs() < 1e-12);
        assert!((9..109).all(|s| schedule.at(s) >= schedule.at(s + 1)));
    }
}
