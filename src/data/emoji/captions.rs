//! Captions of an emoji, as varied as people write them.

use super::super::captions::{joined, other_tags, wrap};
use super::super::collection::Concept;
use crate::rng::{RngExt, SliceRandom, Stream};

/// Prompts of the classification tasks; the later ones also wrap training captions.
pub(super) const TEMPLATES: [&str; 4] =
    ["{}", "an emoji of {}", "a picture of {}", "a drawing of {}"];

/// Training captions: the label, the vendor's name, label with tags, label with the words of
/// its subgroup; about a third of them inside a template.
///
/// Every caption names its concept. Two of eight used to be tags alone ("whatever omg"):
/// after 1,500 steps that cost 8 of 23 points of recall@1 on the validation split.
pub(super) fn captions(
    concept: &Concept,
    subgroup: &str,
    icon: &str,
    stream: &mut Stream,
) -> Vec<String> {
    let label = &concept.label;
    let mut captions = vec![label.clone(), words(icon)];

    for _ in 0..2 {
        let few = stream.random_range(1..=3);
        captions.push(joined(label, &some_tags(concept, few, stream)));
    }

    captions.push(format!("{label} {subgroup}"));
    captions.push(label.clone());

    wrap(&mut captions, &TEMPLATES, stream);

    // A vendor's name may have no words, and an empty caption says nothing.
    captions.retain(|caption| !caption.is_empty());
    captions
}

fn some_tags<'a>(
    concept: &'a Concept,
    count: usize,
    stream: &mut Stream,
) -> Vec<&'a str> {
    let mut tags: Vec<&str> = other_tags(concept).collect();
    tags.shuffle(stream);
    tags.truncate(count);
    tags
}

/// The vendor's name in words, without the number of a variant.
fn words(icon: &str) -> String {
    let stem = icon.strip_prefix("flag-for-").map(|country| format!("flag {country}"));
    let stem = stem.unwrap_or_else(|| icon.to_owned());
    let parts: Vec<&str> = stem.split('-').filter(|part| !part.is_empty()).collect();
    let number = |part: &&str| part.bytes().all(|b| b.is_ascii_digit());
    let end = usize::from(parts.len() > 1 && parts.last().is_some_and(number));
    parts[..parts.len() - end].join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::super::captions::names;
    use super::*;
    use crate::rng;

    fn concept() -> Concept {
        Concept {
            key: "1f355".to_owned(),
            label: "pizza".to_owned(),
            tags: ["cheese", "food", "pizza", "slice"].map(str::to_owned).to_vec(),
            group: 0,
            subgroup: 0,
            held_out: false,
        }
    }

    #[test]
    fn captions_repeat_with_their_stream_and_are_never_empty() {
        let make = |seed| {
            captions(&concept(), "food prepared", "pizza-2", &mut rng::stream(seed, "c"))
        };
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
        for seed in 0..50 {
            let made = make(seed);
            assert_eq!(made.len(), 6);
            assert!(made.iter().all(|c| !c.trim().is_empty() && !c.contains("{}")));
        }
    }

    #[test]
    fn a_concept_without_tags_still_has_captions() {
        let bare = Concept { tags: vec![], ..concept() };
        let made = captions(&bare, "food", "pizza", &mut rng::stream(1, "c"));
        assert_eq!(made.len(), 6);
        assert_eq!(names(&bare), ["pizza", "pizza"]);
    }

    #[test]
    fn names_are_the_label_and_the_label_with_three_tags() {
        assert_eq!(names(&concept()), ["pizza", "pizza cheese food slice"]);
        assert_eq!(words("flag-for-malta"), "flag malta");
        assert_eq!(words("pizza-2"), "pizza");
        assert_eq!(words("2"), "2");
    }
}
