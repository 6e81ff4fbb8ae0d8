//! The whole evaluation of one model: embed everything once, then measure task by task.

use std::collections::BTreeMap;

use super::probe::{FewShot, Size};
use super::tasks::{self, ZeroShot};
use super::{Bootstrap, Bundle, Encoder, Evaluation, LabelledImages, Test, embed};
use crate::config::EvaluateConfig;
use crate::error::{Error, Result};

/// Evaluates a model on every task that the data allow; a task that they do not allow leaves
/// a note.
///
/// The result depends on `seed`, the data and the encoder, and not on the number of threads.
/// Every test picture is embedded once, and of the training split only the few-shot pictures.
pub fn evaluate(
    encoder: &mut dyn Encoder,
    bundle: &Bundle<'_>,
    config: &EvaluateConfig,
    seed: u64,
) -> Result<Evaluation> {
    bundle.check()?;
    let bootstrap = Bootstrap::new(seed, config.bootstrap)?;

    // Everything is embedded once, before any task measures it.
    let vocabulary = &bundle.vocabulary;
    let prompts =
        embed::texts(encoder, vocabulary, &vocabulary.prompts()?, config.batch)?;
    let mut embedded = BTreeMap::new();
    for split in &bundle.splits {
        embedded.insert(split.name(), embed::split(encoder, split, config.batch)?);
    }

    let zero_shot = ZeroShot { vocabulary, prompts: &prompts, bootstrap };
    let mut out = Evaluation::default();
    let tests = named(&embedded, bundle.tests.iter())?;
    out.add(tasks::concept::measure(&zero_shot, &tests, &bundle.shifts)?);

    let retrieval = named(&embedded, [&bundle.retrieval])?[0];
    out.add(tasks::coarse::measure(&zero_shot, retrieval)?);
    for images in named(&embedded, bundle.held_out.iter())? {
        out.add(tasks::held_out::measure(&zero_shot, images)?);
    }

    // Retrieval alone needs captions, of which a picture may have several.
    let split = bundle.test(&bundle.retrieval)?;
    let all: Vec<usize> = (0..split.len()).collect();
    let (texts, owner) = embed::captions(encoder, vocabulary, split, &all, config.batch)?;
    let captions = tasks::retrieval::Captions { texts: &texts, owner: &owner };
    out.add(tasks::retrieval::measure(
        bootstrap,
        retrieval,
        captions,
        &config.recall_at,
    )?);
    let scale = encoder.scale()?;
    out.add(tasks::contrastive::measure(bootstrap, retrieval, captions, scale)?);

    let shifts = named(&embedded, bundle.shifts.iter())?;
    let judges = Judges { shifts: &shifts, bootstrap, seed };
    probe(encoder, bundle, config, &judges, &mut out)?;
    Ok(out)
}

/// The pictures that judge the probes, and the random draws.
#[derive(Debug)]
struct Judges<'a> {
    shifts: &'a [&'a LabelledImages<Test>],
    bootstrap: Bootstrap,
    seed: u64,
}

/// Draws few-shot sets, embeds their pictures and measures the probes.
fn probe(
    encoder: &mut dyn Encoder,
    bundle: &Bundle<'_>,
    config: &EvaluateConfig,
    judges: &Judges<'_>,
    out: &mut Evaluation,
) -> Result<()> {
    let concepts = &bundle.vocabulary.concepts;
    let Some(&most) = config.shots.iter().max() else { return Ok(()) };
    if config.shots.contains(&0) || config.probe_draws == 0 || config.probe_l2.is_empty()
    {
        return Err(Error::usage(
            "evaluate.shots, evaluate.probe_draws or evaluate.probe_l2 holds 0 or nothing, \
             expected positive numbers",
        ));
    }

    // Subgroups, because concepts may have too few pictures to draw from. What is no class
    // has no label.
    let classes = bundle.vocabulary.classes;
    let label = |c: usize| (c < classes).then(|| concepts[c].subgroup);
    let labels: Vec<Option<usize>> =
        bundle.train.concept.iter().map(|&c| label(c)).collect();
    let size =
        Size { shots: most, draws: config.probe_draws, classes: config.probe_classes };
    let few = FewShot::draw(&labels, size, judges.seed);
    let found = few.classes().len();
    if found < 2 {
        let needed = FewShot::needed(most);
        out.notes.push(format!(
            "there is no probe: {found} subgroups have {needed} training pictures, expected \
             at least 2 such subgroups"
        ));
        return Ok(());
    }

    // A concept whose subgroup has too few pictures has no class and takes no part.
    let class: Vec<Option<usize>> = (0..concepts.len())
        .map(|c| few.classes().binary_search(&label(c)?).ok())
        .collect();
    let batch = config.batch;
    let train = embed::images(encoder, &bundle.train, &few.pictures(), batch)?;
    let validation = embed::split(encoder, &bundle.validation, batch)?;

    let probing = tasks::few_shot::Probing {
        few: &few,
        train: &train,
        validation: &validation,
        tests: judges.shifts,
        class: &class,
        shots: &config.shots,
        l2: &config.probe_l2,
    };

    match tasks::few_shot::measure(&probing, judges.bootstrap)? {
        Some(found) => out.add(found),
        None => out.notes.push(
            "there is no probe: no validation picture or no shifted picture has one of its \
             subgroups"
                .to_owned(),
        ),
    }
    Ok(())
}

/// The embedded splits of these names, in their order.
fn named<'e, 'n>(
    embedded: &'e BTreeMap<&str, LabelledImages<Test>>,
    names: impl IntoIterator<Item = &'n String>,
) -> Result<Vec<&'e LabelledImages<Test>>> {
    let find = |name: &String| {
        let found = embedded.get(name.as_str());
        found.ok_or_else(|| Error::failed(format!("there is no test split {name:?}")))
    };
    names.into_iter().map(find).collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
