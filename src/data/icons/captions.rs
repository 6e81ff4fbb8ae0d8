//! Captions of an icon: what it shows, in every word that some set has for it.

use super::super::captions::wrap;
use super::super::packages::Information;
use super::names::Words;
use crate::rng::Stream;

/// Prompts of the classification tasks; the later ones also wrap training captions.
pub(super) const TEMPLATES: [&str; 4] =
    ["{}", "an icon of {}", "a picture of {}", "a drawing of {}"];

/// Most further names of a picture that become captions.
const FURTHER: usize = 3;

/// Training captions: the name, the name with its style, the name with the kind of set, and
/// the further names of the same drawing; about a third of them inside a template.
pub(super) fn captions(
    words: &Words,
    further: &[String],
    kind: &str,
    stream: &mut Stream,
) -> Vec<String> {
    let label = &words.label;
    let mut captions = vec![label.clone()];

    captions.push(match words.style.as_str() {
        "" => label.clone(),
        style => format!("{label} {style}"),
    });
    captions.push(if label.ends_with(kind) {
        label.clone()
    } else {
        format!("{label} {kind}")
    });
    captions.extend(further.iter().take(FURTHER).cloned());

    wrap(&mut captions, &TEMPLATES, stream);
    captions
}

/// What people call a picture of a set.
pub(super) fn kind(info: &Information) -> &'static str {
    match info.category.as_deref() {
        _ if info.is_of_emoji() => "emoji",
        Some("Logos") => "logo",
        Some("Flags / Maps") => "map symbol",
        Some("Programming") => "developer icon",
        _ => "icon",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    #[test]
    fn every_caption_names_the_icon_and_repeats_with_its_stream() {
        let words = Words {
            concept: "arrow left".to_owned(),
            label: "left arrow".to_owned(),
            style: "outline".to_owned(),
        };
        let further = ["back", "previous", "return", "undo"].map(str::to_owned);
        let make = |seed| captions(&words, &further, "icon", &mut rng::stream(seed, "c"));
        assert_eq!(make(1), make(1));
        assert!((2..50).any(|seed| make(seed) != make(1)), "templates are drawn");
        for seed in 0..50 {
            let made = make(seed);
            let named = ["left arrow", "left arrow outline", "left arrow icon"];
            for (caption, name) in
                made.iter().zip(named.iter().chain(&["back", "previous", "return"]))
            {
                assert!(caption.ends_with(name), "{caption}");
            }
            assert_eq!(made.len(), 6, "three names and three further ones");
        }
    }
}
