//! All attacks once more in a process that may not take much memory.

use std::process::Command;

/// Address space of the process: its code, two threads' stacks and arenas, and the largest
/// thing that a hostile file of these catalogues may make us take.
const KIB: u32 = 2 << 20;

#[test]
fn no_attack_takes_more_than_two_gigabytes() {
    let output = Command::new("bash")
        .args(["-c", "ulimit -v \"$1\"; exec \"$0\" --test-threads=1 --skip resources --skip properties"])
        .arg(std::env::current_exe().unwrap())
        .arg(KIB.to_string())
        .env("RAYON_NUM_THREADS", "2")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}\n{errors}");
}
