//! Hostile bytes for one parser, guided by coverage: `tests/fuzz/run.sh` builds and starts it.
//!
//! `FUZZ_TARGET` names the parser. A panic that the crate catches itself is none here.

#![no_main]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]
#![expect(clippy::disallowed_methods, reason = "libFuzzer owns the command line")]

use std::sync::OnceLock;

#[path = "../../hostile/targets.rs"]
mod targets;

struct Session {
    target: &'static targets::Target,
    folder: tempfile::TempDir,
}

static SESSION: OnceLock<Session> = OnceLock::new();

fn open() -> Session {
    // libFuzzer's hook ends the process even for a panic that is caught.
    let _ = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let target = targets::Target::named(&std::env::var("FUZZ_TARGET").unwrap());
    if let Ok(corpus) = std::env::var("FUZZ_SEEDS") {
        for (index, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(format!("{corpus}/seed-{index}"), seed).unwrap();
        }
    }
    Session { target, folder: target.folder() }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let session = SESSION.get_or_init(open);
    let _ = session.target.run(session.folder.path(), bytes);
});
