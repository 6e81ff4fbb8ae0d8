//! The circumstances of a run: which machine, which processor, which commit, how much memory.
//!
//! None of it enters a key. The last bits of a matrix product depend on the instruction set
//! and on the sizes of the caches, which no short name captures. A result that was made
//! elsewhere is still the result that was asked for, and is used; but someone who makes it
//! again on another processor and gets other bytes can read here why.

use std::fs;
use std::process::{Command, Stdio};

/// The processor of this machine, as `Intel(R) Xeon(R) Processor, x86-64-v4`.
pub fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, name)| name.trim());
    format!("{name}, {}", instructions())
}

/// The widest instruction set that the kernels use here.
fn instructions() -> String {
    let chosen = format!("{:?}", pulp::Arch::new());
    let level = chosen.split(['(', ' ']).next().unwrap_or_default();
    match level.strip_prefix('V') {
        Some(number) => format!("x86-64-v{number}"),
        None => level.to_lowercase(),
    }
}

/// The name of this machine.
pub(super) fn host() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    text.trim().to_owned()
}

/// The commit of the working tree; empty outside of one.
pub(super) fn commit() -> String {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .stderr(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => String::new(),
    }
}

/// The most memory that this process has used so far, in bytes, where the system says so.
pub fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named_with_its_instructions() {
        let processor = processor();
        let (_, level) = processor.rsplit_once(", ").unwrap();
        let known = ["x86-64-v2", "x86-64-v3", "x86-64-v4", "scalar", "neon"];
        assert!(known.contains(&level), "{level}");
    }

    #[test]
    fn the_peak_counts_memory_that_was_touched() {
        let Some(before) = peak_memory() else { return };
        let block = vec![1_u8; 64 << 20];
        assert!(block.iter().step_by(4096).all(|&byte| byte == 1));
        let after = peak_memory().unwrap();
        assert!(after >= before && after >= 64 << 20, "{before} then {after}");
    }
}
