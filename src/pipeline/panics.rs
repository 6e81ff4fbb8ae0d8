//! Panics become errors: where one happened is noted, and printed as one line.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Error;

/// Where the panic hook leaves its message for the error that is printed.
#[derive(Debug, Clone, Default)]
pub struct Panics(Arc<Mutex<Option<String>>>);

impl Panics {
    /// Replaces the panic message on standard error by a note for [`Panics::take`].
    pub fn install(&self) {
        let notes = self.clone();
        std::panic::set_hook(Box::new(move |info| {
            let location = info.location().map(ToString::to_string).unwrap_or_default();

            // A panic carries a literal or a formatted text, or something that is not text.
            let payload = info.payload();
            let text = payload
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            *hold(&notes.0) = Some(format!("{text} at {location}"));
        }));
    }

    /// The latest note, as the error to report.
    pub fn take(&self) -> Error {
        let note = hold(&self.0).take().unwrap_or_else(|| "unknown".to_owned());
        Error::failed(format!("this is a bug in upcycle, please report it: {note}"))
    }
}

/// Locks a mutex of plain data: a panic elsewhere cannot leave it half-changed.
pub(super) fn hold<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
