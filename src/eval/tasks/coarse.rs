//! Groups and subgroups by the prompts of their members. The name of a group says little
//! about pictures ("Smileys & Emotion" is not a caption); its members say what they look like.
//! A level that is one group, or whose groups are the classes themselves, is none.

use std::collections::BTreeMap;

use super::{ZeroShot, hits};
use crate::error::Result;
use crate::eval::measurement::Row;
use crate::eval::metrics::classification::Classified;
use crate::eval::{Concept, Evaluation, LabelledImages, Test};

/// Measures group and subgroup accuracy, as far as there are such levels.
pub(crate) fn measure(
    zero_shot: &ZeroShot<'_>,
    images: &LabelledImages<Test>,
) -> Result<Evaluation> {
    let group: fn(&Concept) -> usize = |concept| concept.group;
    let subgroup: fn(&Concept) -> usize = |concept| concept.subgroup;

    let mut out = Evaluation::default();
    for (task, label) in [("group", group), ("subgroup", subgroup)] {
        out.add(measure_level(zero_shot, images, task, label)?);
    }
    Ok(out)
}

fn measure_level(
    zero_shot: &ZeroShot<'_>,
    images: &LabelledImages<Test>,
    task: &'static str,
    label: fn(&Concept) -> usize,
) -> Result<Evaluation> {
    let count = zero_shot.vocabulary.classes;
    let concepts = &zero_shot.vocabulary.concepts[..count];
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, concept) in concepts.iter().enumerate() {
        members.entry(label(concept)).or_default().push(index);
    }

    let images = images.of_classes(count)?;
    if members.len() < 2 || members.len() == count || images.is_empty() {
        return Ok(Evaluation::default());
    }

    // Numbers of groups may have gaps; classes do not.
    let place: BTreeMap<usize, usize> =
        members.keys().enumerate().map(|(place, &label)| (label, place)).collect();
    let classes: Vec<Vec<usize>> = members.into_values().collect();
    let class: Vec<usize> =
        images.concept.iter().map(|&c| place[&label(&concepts[c])]).collect();

    let classifier = zero_shot.classifier(&classes)?;
    let found = Classified::new(&images.embeddings, &classifier, &class)?;
    let resampled = zero_shot.resampled(&format!("{task}/{}", images.split), &found);
    let row = Row { task, split: &images.split, n: found.len() };
    Ok(Evaluation {
        measurements: vec![row.measured("acc1", found.accuracy().acc1, &resampled[0])],
        outcomes: hits(task, &images, &found).collect(),
        ..Evaluation::default()
    })
}
