//! Few-shot probes: fitted on training pictures, tuned on validation pictures and tested on
//! all shift splits together. The label of a picture is its subgroup.

use crate::error::Result;
#[cfg(doc)]
use crate::eval::Draws;
use crate::eval::measurement::Row;
use crate::eval::metrics::classification::Classified;
use crate::eval::probe::{
    FewShot, Linear, Logistic, Probe, Ridge, Standardized, with_constant,
};
use crate::eval::{
    Bootstrap, Choice, Evaluation, LabelledImages, Outcome, Test, Train, Validation,
};
use crate::linalg::Matrix;
use crate::num;
use crate::par;

/// What the probes see.
#[derive(Debug)]
pub(crate) struct Probing<'a> {
    /// The drawn sets; positions are those of the training split.
    pub(crate) few: &'a FewShot,
    /// Embeddings of [`FewShot::pictures`], in that order.
    pub(crate) train: &'a LabelledImages<Train>,
    /// Pictures that the ℓ2 weight is chosen on.
    pub(crate) validation: &'a LabelledImages<Validation>,
    /// Pictures that the probes are tested on.
    pub(crate) tests: &'a [&'a LabelledImages<Test>],
    /// Class of each concept; a concept without one takes no part.
    pub(crate) class: &'a [Option<usize>],
    /// Pictures of each class, a probe for each number.
    pub(crate) shots: &'a [usize],
    /// The ℓ2 weights to choose from.
    pub(crate) l2: &'a [f64],
}

/// Pictures with a class, ready for every probe.
#[derive(Debug)]
struct Judged {
    features: Matrix,
    class: Vec<usize>,
}

/// A probe at a number of shots.
#[derive(Debug, Clone, Copy)]
struct Setting<'a> {
    probe: &'a dyn Probe,
    shots: usize,
}

/// Fits, chooses and measures. `None` if no validation picture or no test picture has a
/// class.
///
/// An interval covers both the luck of the draw and the test pictures: every resample draws
/// pictures with replacement within each split, and a mean over the population that the
/// few-shot sets come from ([`Draws::weights`]). Drawing three sets with replacement instead
/// would miss a third of their variance.
pub(crate) fn measure(
    probing: &Probing<'_>,
    bootstrap: Bootstrap,
) -> Result<Option<Evaluation>> {
    let validation = judged(&[probing.validation], probing.class)?;
    let sizes: Vec<usize> =
        probing.tests.iter().map(|t| with_class(t, probing.class).len()).collect();
    let test = judged(probing.tests, probing.class)?;
    if validation.class.is_empty() || test.class.is_empty() {
        return Ok(None);
    }

    let logistic = Logistic::default();
    let probes: [&dyn Probe; 2] = [&logistic, &Ridge];
    let settings: Vec<Setting<'_>> = probes
        .iter()
        .flat_map(|&probe| {
            probing.shots.iter().map(move |&shots| Setting { probe, shots })
        })
        .collect();

    // Fits are independent of each other: all probes, shots and draws run side by side.
    let draws = probing.few.draws();
    let paths = par::try_map(settings.len() * draws, |job| {
        fit(probing, settings[job / draws], job % draws, probing.l2)
    })?;

    let (mut choices, mut hits) = (Vec::new(), Vec::new());
    for (setting, paths) in settings.iter().zip(paths.chunks(draws)) {
        let (choice, best) = choose(*setting, paths, probing.l2, &validation)?;
        choices.push(choice);
        let chosen: Vec<&Matrix> = paths.iter().map(|path| &path[best]).collect();
        hits.push(test_hits(&chosen, &test)?);
    }

    // One resample serves all probes, so their differences are paired.
    let resampled = bootstrap.resample("probe/shift", settings.len(), |resample| {
        let weights = resample.weights(draws);
        let pictures = within_splits(&sizes, |n| resample.examples(n));
        hits.iter().map(|hits| accuracy(hits, &weights, &pictures)).collect()
    });

    // The value itself counts every draw and every picture once.
    let evenly = vec![1.0 / draws as f64; draws];
    let every_picture: Vec<usize> = (0..test.class.len()).collect();
    let row = Row { task: "probe", split: "shift", n: draws };
    let measurements =
        settings.iter().zip(&hits).zip(&resampled).map(|((setting, hits), resampled)| {
            let metric = format!("{}-{}", setting.probe.name(), setting.shots);
            row.measured(&metric, accuracy(hits, &evenly, &every_picture), resampled)
        });
    let outcomes = settings.iter().zip(&hits).flat_map(|(setting, hits)| {
        let metric = format!("{}-{}", setting.probe.name(), setting.shots);
        outcomes(probing, &metric, hits)
    });
    Ok(Some(Evaluation {
        measurements: measurements.collect(),
        outcomes: outcomes.collect(),
        choices,
        notes: Vec::new(),
    }))
}

/// How each test picture fared, as a mean over draws.
fn outcomes(probing: &Probing<'_>, metric: &str, hits: &[Vec<bool>]) -> Vec<Outcome> {
    let pictures = probing.tests.iter().flat_map(|images| {
        let rows = with_class(images, probing.class).into_iter();
        rows.map(move |row| (images.split.clone(), images.sample[row]))
    });
    pictures
        .enumerate()
        .map(|(index, (split, sample))| {
            let right: u32 = hits.iter().map(|draw| u32::from(draw[index])).sum();
            Outcome {
                task: "probe",
                split,
                metric: metric.to_owned(),
                sample,
                value: f64::from(right) / hits.len() as f64,
            }
        })
        .collect()
}

/// Fits one few-shot set for every ℓ2 weight; the classifiers take raw embeddings.
fn fit(
    probing: &Probing<'_>,
    setting: Setting<'_>,
    draw: usize,
    l2: &[f64],
) -> Result<Vec<Matrix>> {
    let (positions, class) = probing.few.examples(draw, setting.shots);
    let pictures = probing.few.pictures();

    // Pictures are embedded once for all draws; a draw finds its rows among them.
    let row = |position| pictures.partition_point(|&p| p < position);
    let rows: Vec<usize> = positions.into_iter().map(row).collect();
    let features = Standardized::new(&probing.train.embeddings, &rows)?;

    let classes = probing.few.classes().len();
    let path = setting.probe.fit(&features, &class, classes, l2)?;
    path.iter().map(|linear: &Linear| linear.on_embeddings(&features)).collect()
}

/// The ℓ2 weight with the best mean validation accuracy over draws, of equal ones the larger
/// weight, and its index. No test picture takes part.
fn choose(
    setting: Setting<'_>,
    paths: &[Vec<Matrix>],
    l2: &[f64],
    validation: &Judged,
) -> Result<(Choice, usize)> {
    let mut tried = Vec::new();
    for index in 0..l2.len() {
        let mut accuracies = Vec::new();
        for path in paths {
            let found =
                Classified::new(&validation.features, &path[index], &validation.class)?;
            accuracies.push(found.accuracy().acc1);
        }
        tried.push((l2[index], num::mean(&accuracies)));
    }

    let better = |&a: &usize, &b: &usize| {
        tried[a].1.total_cmp(&tried[b].1).then(l2[a].total_cmp(&l2[b]))
    };
    let best = (0..l2.len()).max_by(better).unwrap_or(0);
    let (weight, accuracy) = tried[best];
    tried.sort_by(|(a, _), (b, _)| a.total_cmp(b));

    let choice = Choice {
        probe: setting.probe.name().to_owned(),
        shots: setting.shots,
        l2: weight,
        validation: accuracy,
        tried,
    };
    Ok((choice, best))
}

/// Whether each draw's classifier is right, draw by draw, picture by picture.
fn test_hits(classifiers: &[&Matrix], test: &Judged) -> Result<Vec<Vec<bool>>> {
    let right = |weights: &&Matrix| -> Result<Vec<bool>> {
        let found = Classified::new(&test.features, weights, &test.class)?;
        Ok((0..found.len()).map(|index| found.hit(index)).collect())
    };
    classifiers.iter().map(right).collect()
}

/// The weighted sum over draws of the fraction of hits among the listed pictures.
fn accuracy(hits: &[Vec<bool>], weights: &[f64], pictures: &[usize]) -> f64 {
    let right = |draw: &Vec<bool>| -> u32 {
        pictures.iter().map(|&picture| u32::from(draw[picture])).sum()
    };
    let total = hits.iter().zip(weights).map(|(draw, w)| w * f64::from(right(draw)));
    total.sum::<f64>() / pictures.len() as f64
}

/// Positions drawn within each of several consecutive ranges of these sizes.
fn within_splits(
    sizes: &[usize],
    mut draw: impl FnMut(usize) -> Vec<usize>,
) -> Vec<usize> {
    let (mut all, mut start) = (Vec::new(), 0);

    for &size in sizes {
        all.extend(draw(size).into_iter().map(|index| start + index));
        start += size;
    }
    all
}

fn with_class<R>(images: &LabelledImages<R>, class: &[Option<usize>]) -> Vec<usize> {
    (0..images.len()).filter(|&i| class[images.concept[i]].is_some()).collect()
}

/// The pictures of all splits that have a class, one split after the other.
fn judged<R>(splits: &[&LabelledImages<R>], class: &[Option<usize>]) -> Result<Judged> {
    let (mut data, mut classes, mut width) = (Vec::new(), Vec::new(), 0);
    for images in splits {
        let rows = with_class(images, class);
        let features = with_constant(&images.embeddings, &rows)?;
        width = features.cols();
        data.extend(features.into_data());
        classes.extend(rows.iter().filter_map(|&i| class[images.concept[i]]));
    }
    Ok(Judged { features: Matrix::new(classes.len(), width, data)?, class: classes })
}
