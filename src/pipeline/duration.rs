//! How people write durations.

/// A duration in the unit that fits: `40 s`, `12 min`, `3 h`, `5 days`, `23 years`.
pub fn duration(seconds: f64) -> String {
    const STEPS: [(f64, f64, &str); 4] = [
        (90.0, 1.0, "s"),
        (90.0 * 60.0, 60.0, "min"),
        (48.0 * 3600.0, 3600.0, "h"),
        (730.0 * 86400.0, 86400.0, "days"),
    ];
    let step = STEPS.iter().find(|(below, _, _)| seconds < *below);
    let (unit, name) =
        step.map_or((365.25 * 86400.0, "years"), |(_, unit, name)| (*unit, *name));
    // What takes a moment still takes one.
    format!("{:.0} {name}", (seconds / unit).max(1.0))
}

/// A count with commas between thousands: `1,500`.
pub fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_in_the_unit_that_fits() {
        for (seconds, text) in [
            (0.0, "1 s"),
            (89.0, "89 s"),
            (660.0, "11 min"),
            (7200.0, "2 h"),
            (86400.0 * 5.0, "5 days"),
            (7.3e8, "23 years"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn thousands_are_set_apart() {
        for (count, text) in
            [(0, "0"), (999, "999"), (1500, "1,500"), (1_234_567, "1,234,567")]
        {
            assert_eq!(grouped(count), text);
        }
    }
}
