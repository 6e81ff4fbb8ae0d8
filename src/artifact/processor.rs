//! What computed: the processor's name and the instruction set that its results come from.
//!
//! It enters no key. The last bits of a matrix product follow the instruction set and the sizes
//! of the caches, which no short name captures; a result that was made elsewhere is the result
//! that was asked for, and is used. But who makes it again on another processor and gets other
//! bytes shall read why.

use std::sync::LazyLock;

static PROCESSOR: LazyLock<String> = LazyLock::new(|| {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, name)| name.trim());
    format!("{name}, {}", instructions())
});

/// The processor of this machine, as `Intel(R) Xeon(R) Processor, x86-64-v4`.
pub(super) fn processor() -> &'static str {
    &PROCESSOR
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named_with_its_instructions() {
        let (_, level) = processor().rsplit_once(", ").unwrap();
        let known = ["x86-64-v2", "x86-64-v3", "x86-64-v4", "scalar", "neon"];
        assert!(known.contains(&level), "{level}");
    }
}
