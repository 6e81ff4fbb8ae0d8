//! Axis scales, round ticks and label placement: the arithmetic of a chart.

/// A map from data to pixels, linear or logarithmic.
#[derive(Debug, Clone, Copy)]
pub(in crate::report) struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    log: bool,
}

impl Scale {
    /// Maps `domain` to `range` linearly; an empty domain is widened first.
    pub(in crate::report) fn linear(domain: (f64, f64), range: (f64, f64)) -> Self {
        let (low, high) = widened(domain);
        Self { low, high, from: range.0, to: range.1, log: false }
    }

    /// Maps a positive `domain` to `range` by its logarithm.
    pub(in crate::report) fn log(domain: (f64, f64), range: (f64, f64)) -> Self {
        // A value of zero or below has no logarithm; the bound only keeps it finite.
        let low = domain.0.max(1e-300).log10();
        let (low, high) = widened((low, domain.1.max(1e-300).log10()));
        Self { low, high, from: range.0, to: range.1, log: true }
    }

    /// The pixel of a value, held inside the range.
    pub(in crate::report) fn at(&self, value: f64) -> f64 {
        let value = if self.log { value.max(1e-300).log10() } else { value };
        let fraction = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        fraction.mul_add(self.to - self.from, self.from)
    }

    /// About `count` round values inside the domain with their labels.
    pub(in crate::report) fn ticks(&self, count: usize) -> Vec<(f64, String)> {
        if self.log {
            return self.decades(count);
        }

        // The tolerance keeps a tick that rounding has pushed just outside the domain.
        let step = round_step((self.high - self.low) / count.max(1) as f64);
        let first = (self.low / step - 1e-9).ceil();
        (0..100)
            .map(|i| (first + f64::from(i)) * step)
            .take_while(|v| *v <= self.high + 1e-9 * step)
            .map(|v| (v, label(v, step)))
            .collect()
    }

    /// Powers of ten inside the domain, every second or third one where there are many.
    fn decades(&self, count: usize) -> Vec<(f64, String)> {
        let (first, last) = ((self.low - 1e-9).ceil(), (self.high + 1e-9).floor());
        let stride = ((last - first + 1.0) / count.max(1) as f64).ceil().max(1.0);
        (0..100)
            .map(|i| f64::from(i).mul_add(stride, first))
            .take_while(|power| *power <= last)
            .map(|power| (10_f64.powf(power), power_label(power)))
            .collect()
    }
}

/// A domain that is never empty: a single value gets room around it, and none becomes 0..1.
fn widened((low, high): (f64, f64)) -> (f64, f64) {
    match (low.is_finite(), high.is_finite()) {
        (true, true) if high - low > 1e-12 => (low, high),
        (true, _) => (low - 0.5, low + 0.5),
        _ => (0.0, 1.0),
    }
}

/// The smallest of 1, 2, 5 × 10^k that is at least `raw`.
fn round_step(raw: f64) -> f64 {
    let power = 10_f64.powf(raw.log10().floor());

    // The tolerance keeps a step that is round already, up to rounding.
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * power >= raw * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

/// The text of a tick, with as many decimals as its step needs.
fn label(value: f64, step: f64) -> String {
    let decimals = crate::num::truncate_usize((-(step.log10() + 1e-9).floor()).max(0.0));

    // Multiples of the step miss zero by rounding, and would print as "−0".
    let value = if value.abs() < step * 1e-6 { 0.0 } else { value };
    let text = format!("{:.decimals$}", value.abs());
    let sign = if value < 0.0 { "\u{2212}" } else { "" };
    match text.split_once('.') {
        None if text.len() > 3 => {
            format!("{sign}{}", super::super::words::grouped(value.abs()))
        }
        _ => format!("{sign}{text}"),
    }
}

fn power_label(power: f64) -> String {
    if (-3.5..=0.5).contains(&power) {
        let decimals = crate::num::truncate_usize((-power).max(0.0));
        return format!("{:.decimals$}", 10_f64.powf(power));
    }
    format!("1e{power:.0}").replace('-', "\u{2212}")
}

/// Smallest and largest finite value, widened on both sides by `margin` times their distance.
pub(in crate::report) fn extent(
    values: impl IntoIterator<Item = f64>,
    margin: f64,
) -> Option<(f64, f64)> {
    let mut finite = values.into_iter().filter(|v| v.is_finite());
    let first = finite.next()?;
    let (low, high) =
        finite.fold((first, first), |(low, high), v| (low.min(v), high.max(v)));
    let margin = (high - low) * margin;
    Some((low - margin, high + margin))
}

/// Moves labels apart to at least `gap`, keeping their order, inside `low..=high`.
pub(in crate::report) fn spread(
    wanted: &[f64],
    gap: f64,
    (low, high): (f64, f64),
) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|&a, &b| wanted[a].total_cmp(&wanted[b]).then(a.cmp(&b)));

    // Upwards, every label is pushed beyond the one before it...
    let mut placed = wanted.to_vec();
    let mut floor = low;
    for &index in &order {
        placed[index] = placed[index].max(floor);
        floor = placed[index] + gap;
    }

    // ... and downwards, those that were pushed out of the range come back in.
    let mut ceiling = high;
    for &index in order.iter().rev() {
        placed[index] = placed[index].min(ceiling);
        ceiling = placed[index] - gap;
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_inside_the_domain_and_few() {
        for (low, high) in [(0.0, 1.0), (-3.2, 17.9), (0.0031, 0.0047), (12.0, 90_000.0)]
        {
            let ticks = Scale::linear((low, high), (0.0, 100.0)).ticks(5);
            assert!((2..=7).contains(&ticks.len()), "{low}..{high}: {ticks:?}");
            assert!(ticks.iter().all(|(v, _)| *v >= low - 1e-9 && *v <= high + 1e-9));
        }
        let labels = |domain| -> Vec<String> {
            Scale::linear(domain, (0.0, 1.0)).ticks(4).into_iter().map(|t| t.1).collect()
        };
        assert_eq!(labels((0.0, 1.0)), ["0.0", "0.5", "1.0"]);
        assert_eq!(labels((-2.0, 2.0)), ["\u{2212}2", "\u{2212}1", "0", "1", "2"]);
        assert_eq!(labels((0.0, 4000.0)), ["0", "1,000", "2,000", "3,000", "4,000"]);
    }

    #[test]
    fn empty_and_broken_domains_still_give_finite_pixels() {
        for domain in [(1.0, 1.0), (f64::NAN, 2.0), (0.0, f64::INFINITY)] {
            let scale = Scale::linear(domain, (0.0, 10.0));
            assert!(scale.at(1.0).is_finite(), "{domain:?}");
            assert!(scale.ticks(4).len() < 20);
        }
        assert!(extent([f64::NAN], 0.1).is_none());
    }

    #[test]
    fn decades_are_labelled_plainly() {
        let ticks = Scale::log((1e-5, 1.0), (0.0, 1.0)).ticks(6);
        let labels: Vec<_> = ticks.iter().map(|t| t.1.as_str()).collect();
        assert_eq!(labels, ["1e\u{2212}5", "1e\u{2212}4", "0.001", "0.01", "0.1", "1"]);
    }

    #[test]
    fn spread_labels_do_not_overlap_and_keep_their_order() {
        let wanted = [50.0, 51.0, 49.0, 99.0, 100.0];
        let placed = spread(&wanted, 12.0, (0.0, 100.0));
        for (i, a) in wanted.iter().enumerate() {
            for (j, b) in wanted.iter().enumerate().filter(|(j, _)| *j != i) {
                assert!((placed[i] - placed[j]).abs() >= 12.0 - 1e-9);
                assert_eq!(a < b, placed[i] < placed[j], "{i} {j}");
            }
        }
    }
}
