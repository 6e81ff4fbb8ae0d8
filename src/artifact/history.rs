//! `runs.jsonl`: one line for everything a stage did, for people and for time estimates.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use serde::Serialize;

use super::files;

/// One line of the history.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Record<'a> {
    /// When, in UTC.
    pub(super) time: String,
    /// Stage and run.
    pub(super) place: String,
    /// Key of the result.
    pub(super) key: &'a str,
    /// `ran`, `reused` or `failed`.
    pub(super) outcome: &'a str,
    /// Why it was not fresh.
    pub(super) reason: String,
    /// Seconds.
    pub(super) wall: f64,
}

/// Appends a line. History is a courtesy: a failure to write it is not an error.
pub(super) fn append(root: &Path, record: &Record<'_>) {
    let Ok(mut line) = serde_json::to_string(record) else { return };

    // One write per line: processes that append at the same time do not mix their lines.
    line.push('\n');
    let path = root.join(".state").join("runs.jsonl");
    if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path) {
        let _ = file.write_all(line.as_bytes());
    }
}

/// The present time in UTC, as `2026-11-22T10:20:30Z`.
pub(super) fn now_text() -> String {
    time_text(files::now_nanoseconds().div_euclid(1_000_000_000))
}

/// Seconds since 1970 as text; days to dates by Hinnant's `civil_from_days`.
fn time_text(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));

    // Years begin in March, so that the leap day is the last of its year; eras are the 400
    // years after which the calendar repeats. Day 0 is the first of March of the year 0.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524
        - day_of_era / 146_096)
        / 365;

    let day_of_year =
        day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month =
        if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);

    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
}

#[cfg(test)]
mod tests {
    use super::time_text;

    #[test]
    fn known_times_are_written_right() {
        assert_eq!(time_text(0), "1970-01-01T00:00:00Z");
        assert_eq!(time_text(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(time_text(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(time_text(1_700_000_000), "2023-11-14T22:13:20Z");
    }
}
