//! How much memory is free, and how people write sizes.

use indicatif::HumanBytes;

use crate::error::{Error, Result};

/// Parses a size as `512M`, `4G` or `0`: bytes, with units of powers of 1024.
pub fn parse(text: &str) -> Result<u64> {
    let bad = || {
        Error::usage(format!(
            "memory {text:?} is not a size; expected a number and K, M, G or T, such as 4G"
        ))
    };

    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let power = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(bad()),
    };

    let number: u64 = digits.parse().map_err(|e| bad().caused_by(e))?;
    number.checked_mul(1 << power).ok_or_else(bad)
}

/// The memory that is free now, in bytes, where the system says so.
pub fn free() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    // What the kernel could hand out without swapping, caches included.
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Half of the memory that is free now; 4 GB where the system does not say.
pub fn half_of_free() -> u64 {
    free().map_or(4 << 30, |bytes| bytes / 2)
}

/// How many jobs of `need` bytes fit into nine tenths of `free`: at most `wanted`, at least
/// one.
pub fn fitting(wanted: usize, need: u64, free: Option<u64>) -> usize {
    let Some(free) = free.filter(|_| need > 0) else { return wanted };

    // A tenth stays for buffers that were not counted, and for the system.
    let fits = usize::try_from(free / 10 * 9 / need).unwrap_or(wanted);
    wanted.min(fits).max(1)
}

/// Bytes as people read them: `1.50 GiB`.
pub fn size(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_goes_side_by_side_only_where_it_fits() {
        assert_eq!(fitting(8, 10, Some(100)), 8);
        assert_eq!(fitting(8, 30, Some(100)), 3);
        assert_eq!(fitting(8, 500, Some(100)), 1);
        assert_eq!(fitting(8, 0, Some(100)), 8);
        assert_eq!(fitting(8, 500, None), 8);
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("2K", 2048),
            ("3M", 3 << 20),
            ("4g", 4 << 30),
            ("1GiB", 1 << 30),
        ] {
            assert_eq!(parse(text).unwrap(), bytes);
        }
        for text in ["", "G", "1.5G", "-1", "4X", "99999999999T"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
