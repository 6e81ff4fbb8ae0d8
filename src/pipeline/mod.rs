//! The framework: what a stage is, which nodes are stale, and how they are run.
//!
//! It knows no stage by name. [`crate::stage`] holds the stages and the graph; the command
//! line hands both to the [`Survey`] and the [`drive`].

pub mod drive;
mod duration;
mod events;
pub mod memory;
mod node;
mod overall;
mod panics;
mod progress;
pub mod source;
mod stage;
mod survey;

pub use duration::{duration, grouped};
pub use events::Event;
pub use node::{Externals, Files, ListPairs, Node, Upstream};
pub use panics::Panics;
pub use progress::{Console, Progress, Volume};
pub use stage::{Job, Reach, Stage, Width};
pub use survey::{Survey, Verdict, one_line};
