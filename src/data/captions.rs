//! What the captions of all drawn sources have in common.
//!
//! Words are joined by spaces: a comma would cost a token of the short context each time.

use super::collection::Concept;
use crate::rng::{RngExt, Stream};

/// Fraction of captions wrapped in a template.
const WRAPPED: f64 = 0.3;

/// Tags in the longer caption of the retrieval task.
const TAGS: usize = 3;

/// Puts about a third of the captions inside one of the templates; the first template, which
/// is the bare label, is left out.
pub(super) fn wrap(captions: &mut [String], templates: &[&str], stream: &mut Stream) {
    for caption in captions {
        if stream.random::<f64>() < WRAPPED {
            let template = templates[stream.random_range(1..templates.len())];
            *caption = template.replace("{}", caption);
        }
    }
}

/// Captions of the retrieval task: the label; the label and its first three tags.
pub(super) fn names(concept: &Concept) -> Vec<String> {
    let tags: Vec<&str> = other_tags(concept).take(TAGS).collect();
    vec![concept.label.clone(), joined(&concept.label, &tags)]
}

/// Tags that say more than the label.
pub(super) fn other_tags(concept: &Concept) -> impl Iterator<Item = &str> {
    concept.tags.iter().map(String::as_str).filter(|tag| *tag != concept.label)
}

/// The label followed by tags.
pub(super) fn joined(label: &str, tags: &[&str]) -> String {
    let mut words = vec![label];
    words.extend(tags);
    words.join(" ")
}
