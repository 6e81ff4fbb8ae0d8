//! Icon sets from npm: what the sources `emoji` and `icons` have in common.
//!
//! ```text
//! packages.lock ─► lock: the verified file ─► archive: its members ─► iconify: drawings ─► draw: pictures
//! ```
//!
//! Nothing here fetches anything, and nothing here knows what a drawing shows: names and
//! concepts are read by the sources.

mod archive;
mod draw;
mod iconify;
mod lock;

pub use lock::{Package, missing, of};

pub(super) use archive::{each, extract};
pub(super) use draw::{Canvas, Drawing, draw};
pub(super) use iconify::{Icon, IconSet, Information};
pub(super) use lock::{open, require};

#[cfg(test)]
pub(super) use archive::tests::pack;
