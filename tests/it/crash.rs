//! A process killed at any step leaves the old state or the new one, and the next run ends
//! where an undisturbed one ends.

use std::path::Path;
use std::process::{Command, Stdio};

use upcycle::artifact::{CRASH_STEPS, Options};
use upcycle::pipeline::drive::Orders;

use crate::harness::{Settings, World, orders};

const ROOT: &str = "UPCYCLE_TEST_ROOT";
const STEP: &str = "UPCYCLE_TEST_STEP";

/// Not a test of its own: the process that dies. Without the variables it does nothing.
#[test]
#[expect(clippy::disallowed_methods, reason = "how a test talks to its own child")]
fn the_child_that_dies() {
    let (Ok(root), Ok(step)) = (std::env::var(ROOT), std::env::var(STEP)) else { return };
    let options = Options { crash_at: Some(step), ..Options::default() };
    let orders = Orders { force: true, ..orders() };
    let _ = World::at(Path::new(&root)).make_with(&Settings::default(), &orders, options);
}

fn die(world: &World, step: &str) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["crash::the_child_that_dies", "--exact"])
        .env(ROOT, &world.root)
        .env(STEP, step)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success(), "the child survived {step}");
}

#[test]
fn after_a_crash_at_any_step_a_run_ends_like_an_undisturbed_one() {
    let undisturbed = World::new();
    undisturbed.make(&Settings::default());
    for step in CRASH_STEPS {
        let world = World::new();
        die(&world, step);
        world.make(&Settings::default());
        assert_eq!(world.contents(), undisturbed.contents(), "{step}");
        assert_eq!(world.make(&Settings::default()), [""; 0], "{step}");

        let staged: Vec<String> = world
            .leftovers()
            .into_iter()
            .filter(|n| !n.starts_with("scratch-"))
            .collect();
        assert!(staged.is_empty(), "{step}: {staged:?}");
    }
}

#[test]
fn a_crash_while_a_result_is_made_again_never_loses_it() {
    let undisturbed = World::new();
    undisturbed.make(&Settings::default());
    for step in CRASH_STEPS {
        let world = World::new();
        world.make(&Settings::default());
        die(&world, step);
        world.make(&Settings::default());
        assert_eq!(world.contents(), undisturbed.contents(), "{step}");
    }
}

#[test]
fn a_checkpoint_survives_a_kill_and_goes_with_the_publication() {
    let world = World::new();
    die(&world, "worked");
    let scratch = |world: &World| {
        world.leftovers().into_iter().any(|name| name.starts_with("scratch-"))
    };
    assert!(scratch(&world));
    world.make(&Settings::default());
    assert!(!scratch(&world));
}
