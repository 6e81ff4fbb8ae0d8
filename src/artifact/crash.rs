//! Named points of a publication at which a test can make the process die.

/// Every point, in the order a publication passes them.
pub const STEPS: &[&str] = &[
    "locked",
    "staged",
    "worked",
    "synced",
    "manifest",
    "moved-aside",
    "renamed",
    "pointed",
    "cleaned",
];

/// Ends the process if `armed` names this point: without cleaning up, as SIGKILL would.
pub(super) fn point(armed: Option<&str>, name: &str) {
    debug_assert!(STEPS.contains(&name), "{name} is not in the list of steps");
    if armed == Some(name) {
        std::process::abort();
    }
}
