//! Numbers, counts and lists written for people.

use super::stats::{Difference, Summary};

/// What is printed where there is no number.
pub(super) const NOTHING: &str = "\u{2013}";

/// A number with `decimals` and a true minus sign.
pub(super) fn number(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        return NOTHING.to_owned();
    }

    // A value that rounds to zero has no sign: "−0.0" would look like a difference.
    let text = format!("{:.decimals$}", value.abs());
    let zero = text.chars().all(|c| matches!(c, '0' | '.'));
    if value < 0.0 && !zero { format!("\u{2212}{text}") } else { text }
}

/// A number that always shows its sign.
pub(super) fn signed(value: f64, decimals: usize) -> String {
    let text = number(value, decimals);
    let digits = text.chars().any(|c| matches!(c, '1'..='9'));
    if value > 0.0 && digits { format!("+{text}") } else { text }
}

/// A fraction in percent with one decimal.
pub(super) fn percent(fraction: f64) -> String {
    number(100.0 * fraction, 1)
}

/// Mean of fractions in percent.
pub(super) fn mean_percent(summary: Option<Summary>) -> String {
    summary.map_or_else(|| NOTHING.to_owned(), |s| percent(s.mean))
}

/// Mean and standard deviation of fractions in percent.
pub(super) fn spread_percent(summary: Option<Summary>) -> String {
    spread(summary, 100.0, 1)
}

/// Mean and standard deviation, both times a factor.
pub(super) fn spread(summary: Option<Summary>, factor: f64, decimals: usize) -> String {
    match summary {
        None => NOTHING.to_owned(),
        Some(Summary { mean, std: None, .. }) => number(factor * mean, decimals),
        Some(Summary { mean, std: Some(std), .. }) => {
            let (mean, std) = (factor * mean, factor * std);
            format!("{} \u{b1} {}", number(mean, decimals), number(std, decimals))
        }
    }
}

/// A difference in percentage points with its interval: `+0.8 [−0.3, +1.9]`.
pub(super) fn points(difference: &Difference) -> String {
    let mean = signed(difference.mean, 1);
    match difference.interval {
        Some((low, high)) => format!("{mean} [{}, {}]", signed(low, 1), signed(high, 1)),
        None => format!("{mean} ({})", difference.without_interval()),
    }
}

/// A whole number with commas: `16,597`.
pub(super) fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");

    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        // A comma stands where a multiple of three digits is left, but not behind a
        // minus sign.
        if index > 0 && (digits.len() - index).is_multiple_of(3) && digit.is_ascii_digit()
        {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A count of parameters: `0.42 M`.
pub(super) fn parameters(count: u64) -> String {
    let count = count as f64;
    if count >= 1e9 {
        format!("{:.2} B", count / 1e9)
    } else if count >= 1e4 {
        format!("{:.2} M", count / 1e6)
    } else {
        grouped(count)
    }
}

/// `a`, `a and b`, `a, b and c`.
pub(super) fn list<S: AsRef<str>>(items: &[S]) -> String {
    match items {
        [] => String::new(),
        [one] => one.as_ref().to_owned(),
        [head @ .., last] => {
            let head: Vec<_> = head.iter().map(AsRef::as_ref).collect();
            format!("{} and {}", head.join(", "), last.as_ref())
        }
    }
}

/// A count with its noun: `1 seed`, `3 seeds`.
pub(super) fn count(n: usize, noun: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {noun}{plural}")
}

/// The text with a capital first letter.
pub(super) fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |c| c.to_uppercase().chain(letters).collect())
}

/// The text with a small first letter.
pub(super) fn lower(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |c| c.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well_at_their_edges() {
        assert_eq!(number(-0.04, 1), "0.0");
        assert_eq!(number(f64::NAN, 1), NOTHING);
        assert_eq!(signed(-1.25, 1), "\u{2212}1.2");
        assert_eq!(signed(0.01, 1), "0.0");
        assert_eq!(grouped(16_597.0), "16,597");
        assert_eq!(grouped(100.0), "100");
        assert_eq!(parameters(424_321), "0.42 M");
        assert_eq!(list(&["a", "b", "c"]), "a, b and c");
        assert_eq!(count(1, "seed"), "1 seed");
    }

    #[test]
    fn a_difference_without_interval_says_so() {
        let one = Difference { n: 1, mean: 0.84, interval: None, covers: None };
        assert_eq!(points(&one), "+0.8 (one seed)");
        let alike = Difference { n: 3, ..one };
        assert_eq!(points(&alike), "+0.8 (the same in every seed)");
        let interval = Some((-0.3, 1.98));
        let three = Difference { n: 3, mean: 0.84, interval, covers: None };
        assert_eq!(points(&three), "+0.8 [\u{2212}0.3, +2.0]");
    }
}
