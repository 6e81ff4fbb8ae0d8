//! Classification among all classes on every test split, and its mean over the shift splits,
//! the score with the least noise. Pictures of other concepts take no part.

use super::{ZeroShot, hits};
use crate::error::Result;
use crate::eval::measurement::Row;
use crate::eval::metrics::classification::Classified;
use crate::eval::{Evaluation, LabelledImages, Test};
use crate::num;

/// Measures every split; `shifts` names those that the summary averages. A resample of the
/// summary is the mean of the splits' own resamples, which are independent: pictures are
/// drawn anew within each split and no split's size counts.
pub(crate) fn measure(
    zero_shot: &ZeroShot<'_>,
    splits: &[&LabelledImages<Test>],
    shifts: &[String],
) -> Result<Evaluation> {
    let count = zero_shot.vocabulary.classes;
    let classes: Vec<Vec<usize>> = (0..count).map(|c| vec![c]).collect();
    let classifier = zero_shot.classifier(&classes)?;

    let (mut out, mut outcomes) = (Vec::new(), Vec::new());
    let (mut values, mut resamples, mut n) = (Vec::new(), Vec::new(), 0);
    for images in splits {
        let images = images.of_classes(count)?;
        let split = images.split.as_str();

        // A split may hold other concepts alone; there is nothing to measure on it then.
        if images.is_empty() {
            continue;
        }
        let found = Classified::new(&images.embeddings, &classifier, &images.concept)?;
        let accuracy = found.accuracy();
        outcomes.extend(hits("concept", &images, &found));

        let mut resampled = zero_shot.resampled(&format!("concept/{split}"), &found);
        let row = Row { task: "concept", split, n: found.len() };
        out.push(row.measured("acc1", accuracy.acc1, &resampled[0]));
        if let Some(acc5) = accuracy.acc5 {
            out.push(row.measured("acc5", acc5, &resampled[1]));
        }
        let recall = accuracy.mean_per_class_recall;
        out.push(row.measured("mean_per_class_recall", recall, &resampled[2]));

        if shifts.iter().any(|s| s == split) {
            values.push(accuracy.acc1);
            resamples.push(resampled.swap_remove(0));
            n += found.len();
        }
    }

    // Resample b of the summary is the mean of the splits' resamples b: splits are
    // drawn independently of each other, and weigh the same whatever their sizes.
    if let Some(first) = resamples.first() {
        let mean_of = |b: usize| {
            num::mean(&resamples.iter().map(|split| split[b]).collect::<Vec<_>>())
        };
        let means: Vec<f64> = (0..first.len()).map(mean_of).collect();
        let row = Row { task: "summary", split: "shift", n };
        out.push(row.measured("shift", num::mean(&values), &means));
    }
    Ok(Evaluation { measurements: out, outcomes, ..Evaluation::default() })
}
