//! The evaluation as a whole, with a model whose embeddings are known.

use super::*;
use crate::error::Context;
use crate::eval::{CONTRASTIVE, CONTRASTIVE_TASK, example_retrievals};
use crate::eval::{Concept, ReadPixels, Split, Train, Validation, Vocabulary};
use crate::eval::{fine_tune, similarity, validate};
use crate::image::{PixelBuffer, Pixels};
use crate::linalg::Matrix;
use crate::num;
use crate::rng;

const CONCEPTS: usize = 60;
const SUBGROUPS: usize = 6;
const WIDTH: usize = 24;

/// Embeds what it is told: concept `c` points along direction `c`, pictures are `noise` off.
#[derive(Debug)]
struct Toy {
    directions: Matrix,
    noise: f32,
    pictures: usize,
}

impl Toy {
    /// Concepts of a subgroup lie together.
    fn new(noise: f32) -> Self {
        let mut directions = Matrix::zeros(CONCEPTS, WIDTH);
        rng::fill_normal(&mut rng::stream(1, "toy"), 0.7, directions.data_mut());
        let mut centers = Matrix::zeros(SUBGROUPS, WIDTH);
        rng::fill_normal(&mut rng::stream(1, "centres"), 1.5, centers.data_mut());
        for concept in 0..CONCEPTS {
            let center = centers.row(concept % SUBGROUPS).to_vec();
            let row = directions.row_mut(concept).iter_mut();
            row.zip(&center).for_each(|(v, c)| *v += c);
        }
        Self { directions, noise, pictures: 0 }
    }
}

impl Encoder for Toy {
    fn embed_dim(&self) -> usize {
        WIDTH
    }

    fn scale(&self) -> Result<f64> {
        Ok(50.0)
    }

    fn images(&mut self, pixels: Pixels<'_>, n: usize) -> Result<Matrix> {
        self.pictures += n;
        let mut out = Matrix::zeros(n, WIDTH);
        for (index, pixel) in pixels.values(1).chunks_exact(3).enumerate() {
            let concept = num::truncate_usize(f64::from(pixel[0]));
            let mut stream = rng::stream(2, &format!("picture/{}", pixel[1]));
            rng::fill_normal(&mut stream, self.noise, out.row_mut(index));
            let own = out.row_mut(index).iter_mut().zip(self.directions.row(concept));
            own.for_each(|(v, d)| *v += d);
        }
        similarity::unit_rows(&out, "toy pictures")
    }

    fn texts(&mut self, ids: &[u32], n: usize) -> Result<Matrix> {
        let rows = ids.chunks_exact(ids.len() / n);
        let data = rows
            .flat_map(|row| self.directions.row(num::widen(row[0])).to_vec())
            .collect();
        similarity::unit_rows(&Matrix::new(n, WIDTH, data)?, "toy texts")
    }
}

/// The number in a text is its concept.
fn tokenize(texts: &[String]) -> Result<Vec<u32>> {
    let number = |text: &String| {
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        digits.parse::<u32>().context(|| format!("no number in {text:?}"))
    };
    texts.iter().map(number).collect()
}

fn split<R>(name: &str, first: u32, concept: Vec<usize>) -> Split<'static, R> {
    let n = num::index_u32(concept.len());
    let sample: Vec<u32> = (first..first + n).collect();
    let pictures: Vec<[f32; 3]> =
        concept.iter().zip(&sample).map(|(&c, &s)| [c as f32, s as f32, 0.0]).collect();
    let pixels: ReadPixels<'static> = Box::new(move |indices| {
        let values = indices.iter().flat_map(|&i| pictures[i]);
        Ok(PixelBuffer::Values(values.collect()))
    });
    let captions = concept
        .iter()
        .map(|c| vec![format!("label {c}"), format!("label {c}, tags")])
        .collect();
    Split::new(name, sample, concept, captions, pixels).unwrap()
}

fn vocabulary() -> Vocabulary<'static> {
    let concept = |c: usize| Concept {
        label: format!("thing {c}"),
        group: 10 * (c % 3),
        subgroup: c % SUBGROUPS,
        held_out: c >= 50,
    };
    Vocabulary {
        concepts: (0..CONCEPTS).map(concept).collect(),
        classes: CONCEPTS,
        templates: vec!["{}".to_owned(), "a picture of {}".to_owned()],
        tokenize: &tokenize,
    }
}

fn bundle() -> Bundle<'static> {
    let cycle = |n: usize, modulus: usize| (0..n).map(|i| i % modulus).collect();
    Bundle {
        vocabulary: vocabulary(),
        train: split::<Train>("train", 0, cycle(400, 50)),
        validation: split::<Validation>("val", 1000, cycle(60, 50)),
        splits: vec![
            split("pair", 2000, cycle(50, 50)),
            split("v2", 3000, cycle(120, 60)),
            split("sketch", 4000, cycle(60, 60)),
            split("heldout", 5000, (0..40).map(|i| 50 + i % 10).collect()),
        ],
        tests: ["pair", "v2", "sketch"].map(str::to_owned).to_vec(),
        shifts: ["v2", "sketch"].map(str::to_owned).to_vec(),
        retrieval: "pair".to_owned(),
        held_out: Some("heldout".to_owned()),
    }
}

fn config() -> EvaluateConfig {
    EvaluateConfig {
        recall_at: vec![1, 5],
        shots: vec![5, 10],
        probe_draws: 2,
        probe_classes: 0,
        probe_l2: vec![1e-3, 1e-1],
        fine_tuning: tuning(20),
        bootstrap: 50,
        batch: 32,
        pixels: 0,
        sets: Vec::new(),
    }
}

fn tuning(steps: usize) -> crate::config::OptimConfig {
    let overrides = crate::config::Overrides::default();
    let optim = crate::config::load_default(&overrides).unwrap().train.optim;
    crate::config::OptimConfig { steps, batch: 32, ..optim }
}

/// A toy whose tower does not move: only the head trains. It keeps the losses.
struct Tuned {
    toy: Toy,
    losses: Vec<f64>,
}

impl Encoder for Tuned {
    fn embed_dim(&self) -> usize {
        self.toy.embed_dim()
    }

    fn scale(&self) -> Result<f64> {
        self.toy.scale()
    }

    fn images(&mut self, pixels: Pixels<'_>, n: usize) -> Result<Matrix> {
        self.toy.images(pixels, n)
    }

    fn texts(&mut self, ids: &[u32], n: usize) -> Result<Matrix> {
        self.toy.texts(ids, n)
    }
}

impl crate::eval::Tuner for Tuned {
    fn step(
        &mut self,
        pixels: Pixels<'_>,
        loss: crate::eval::EmbeddingLoss<'_>,
    ) -> Result<f64> {
        let unit = self.toy.images(pixels, pixels.len() / 3)?;
        let (value, gradient) = loss(unit.data())?;
        assert_eq!(gradient.len(), unit.data().len());
        self.losses.push(value);
        Ok(value)
    }

    fn update(&mut self, _step: usize) -> Result<f64> {
        Ok(0.01)
    }
}

/// More steps fit the training pictures better, and the pictures that judge are those of the
/// shifts, each once.
#[test]
fn fine_tuning_learns_and_is_measured_on_the_shift_splits() {
    let measured = |steps: usize| {
        let mut tuned = Tuned { toy: Toy::new(1.2), losses: Vec::new() };
        let config = EvaluateConfig { fine_tuning: tuning(steps), ..config() };
        let found = fine_tune(&mut tuned, &bundle(), &config, 1).unwrap().unwrap();
        (found, tuned.losses)
    };
    let ((found, outcomes), losses) = measured(60);
    let (first, last) = (num::mean(&losses[..10]), num::mean(&losses[50..]));
    assert!(last < 0.8 * first, "{first} {last}");
    assert_eq!((found.task.as_str(), found.metric.as_str()), ("finetune", "acc1"));
    assert!(found.low <= found.value && found.value <= found.high);

    let right: Vec<f64> = outcomes.iter().map(|outcome| outcome.value).collect();
    assert_eq!(num::widen(found.n), outcomes.len());
    assert!((num::mean(&right) - found.value).abs() < 1e-12);
    let splits: std::collections::BTreeSet<&str> =
        outcomes.iter().map(|outcome| outcome.split.as_str()).collect();
    assert_eq!(splits.into_iter().collect::<Vec<_>>(), ["sketch", "v2"]);
    assert_eq!(measured(60).0.0, found, "a run repeats itself");
}

/// What a metric is the mean of stands picture by picture.
#[test]
fn outcomes_average_to_the_metrics() {
    let mut toy = Toy::new(1.0);
    let found = evaluate(&mut toy, &bundle(), &config(), 1).unwrap();
    for (task, split, metric) in [
        ("concept", "pair", "acc1"),
        ("concept", "v2", "acc1"),
        ("concept", "sketch", "acc1"),
        ("group", "pair", "acc1"),
        ("subgroup", "pair", "acc1"),
        ("heldout", "heldout", "acc1"),
        ("retrieval", "pair", "image_retrieval_recall@1"),
        ("retrieval", "pair", "text_retrieval_recall@5"),
        (CONTRASTIVE_TASK, "pair", "loss"),
    ] {
        let is_it = |o: &&crate::eval::Outcome| {
            (o.task, o.split.as_str(), o.metric.as_str()) == (task, split, metric)
        };
        let own = found.outcomes.iter().filter(is_it);
        let values: Vec<f64> = own.map(|outcome| outcome.value).collect();
        let expected = found.find(task, split, metric).unwrap();
        assert!(!values.is_empty() && values.len() <= num::widen(expected.n), "{task}");
        assert!((num::mean(&values) - expected.value).abs() < 1e-12, "{task} {split}");
    }
    for metric in ["logistic-5", "ridge-10"] {
        let own =
            found.outcomes.iter().filter(|o| o.task == "probe" && o.metric == metric);
        let values: Vec<f64> = own.map(|outcome| outcome.value).collect();
        let expected = found.find("probe", "shift", metric).unwrap();
        assert!((num::mean(&values) - expected.value).abs() < 1e-12, "{metric}");
    }
}

#[test]
fn perfect_embeddings_score_one_on_every_task() {
    let mut toy = Toy::new(0.0);
    let found = evaluate(&mut toy, &bundle(), &config(), 1).unwrap();
    let of =
        |m: &crate::eval::Measurement| format!("{} {} {}", m.task, m.split, m.metric);
    let names: Vec<String> = found.measurements.iter().map(of).collect();
    let mut expected = Vec::new();
    for split in ["pair", "v2", "sketch"] {
        for metric in ["acc1", "acc5", "mean_per_class_recall"] {
            expected.push(format!("concept {split} {metric}"));
        }
    }
    for name in [
        "summary shift shift",
        "group pair acc1",
        "subgroup pair acc1",
        "heldout heldout acc1",
        "heldout heldout acc5",
        "retrieval pair image_retrieval_recall@1",
        "retrieval pair text_retrieval_recall@1",
        "retrieval pair image_retrieval_recall@5",
        "retrieval pair text_retrieval_recall@5",
        "contrastive pair loss",
        "probe shift logistic-5",
        "probe shift logistic-10",
        "probe shift ridge-5",
        "probe shift ridge-10",
    ] {
        expected.push(name.to_owned());
    }
    assert_eq!(names, expected);
    for m in &found.measurements {
        // What is perfect of a loss is zero.
        if m.task == CONTRASTIVE_TASK {
            assert!((0.0..0.1).contains(&m.value), "{}: {}", of(m), m.value);
            continue;
        }
        let least =
            if m.task == "probe" || m.task.ends_with("group") { 0.9 } else { 1.0 };
        assert!(m.value >= least - 1e-12, "{}: {}", of(m), m.value);
        assert!(m.low <= m.value + 1e-12 && m.value <= m.high + 1e-12, "{}", of(m));
    }
    let n = |task, split, metric| found.find(task, split, metric).unwrap().n;
    assert_eq!(n("summary", "shift", "shift"), 180);
    assert_eq!(n("retrieval", "pair", "image_retrieval_recall@1"), 100);
    assert_eq!(n("retrieval", "pair", "text_retrieval_recall@1"), 50);
    assert_eq!(n("probe", "shift", "ridge-5"), 2);
    // Of 400 training pictures at most 2 draws × 10 shots × 6 subgroups are embedded.
    assert!(toy.pictures <= 120 + 60 + 270, "{}", toy.pictures);
    assert!(found.notes.is_empty());
}

#[test]
fn the_shift_is_the_mean_of_its_splits_and_the_interval_holds_it() {
    let found = evaluate(&mut Toy::new(2.0), &bundle(), &config(), 1).unwrap();
    let acc1 = |split| found.find("concept", split, "acc1").unwrap().value;
    let shift = found.find("summary", "shift", "shift").unwrap();
    assert!((shift.value - f64::midpoint(acc1("v2"), acc1("sketch"))).abs() < 1e-12);
    assert!(shift.low < shift.value && shift.value < shift.high);
    assert!(shift.value > 0.05 && shift.value < 0.95, "{}", shift.value);
}

#[test]
fn a_seed_and_any_number_of_threads_give_the_same_bytes() {
    let run = |threads: usize, seed: u64| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let found = evaluate(&mut Toy::new(1.5), &bundle(), &config(), seed).unwrap();
            found.to_json().unwrap()
        })
    };
    let one = run(1, 7);
    assert_eq!(one, run(3, 7));
    assert_ne!(one, run(1, 8));
    let value: serde_json::Value = serde_json::from_str(&one).unwrap();
    assert_eq!(value["measurements"][0]["task"], "concept");
    assert_eq!(value["choices"].as_array().unwrap().len(), 4);
}

#[test]
fn validation_pictures_move_no_zero_shot_number_and_test_pictures_no_choice() {
    let base = evaluate(&mut Toy::new(1.5), &bundle(), &config(), 1).unwrap();
    let mut other = bundle();
    other.validation = split("val", 9000, (0..40).map(|i| (i * 7) % 50).collect());
    let moved = evaluate(&mut Toy::new(1.5), &other, &config(), 1).unwrap();
    let zero_shot = |e: &Evaluation| -> Vec<crate::eval::Measurement> {
        e.measurements.iter().filter(|m| m.task != "probe").cloned().collect()
    };
    assert_eq!(zero_shot(&base), zero_shot(&moved));
    let mut other = bundle();
    other.splits[1] = split("v2", 30_000, (0..90).map(|i| (i * 11) % 60).collect());
    let moved = evaluate(&mut Toy::new(1.5), &other, &config(), 1).unwrap();
    assert_eq!(base.choices, moved.choices);
    assert_ne!(
        base.find("probe", "shift", "ridge-5"),
        moved.find("probe", "shift", "ridge-5")
    );
}

#[test]
fn a_picture_in_two_splits_is_refused() {
    for (first, says) in [(10, "split train"), (1010, "split val"), (2010, "split pair")]
    {
        let mut leaky = bundle();
        leaky.splits[1] = split("v2", first, vec![3; 5]);
        let error = evaluate(&mut Toy::new(0.0), &leaky, &config(), 1).unwrap_err();
        assert!(error.message().contains(says), "{error:?}");
        assert!(error.message().contains("and in split v2"), "{error:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let refused = |change: &dyn Fn(&mut Bundle<'static>, &mut EvaluateConfig),
                   says: &str| {
        let (mut bundle, mut config) = (bundle(), config());
        change(&mut bundle, &mut config);
        let error = evaluate(&mut Toy::new(0.0), &bundle, &config, 1).unwrap_err();
        assert!(format!("{error:?}").contains(says), "{error:?}");
    };
    refused(&|b, _| b.tests.push("v9".to_owned()), "no test split \"v9\"");
    refused(&|b, _| b.shifts.push("heldout".to_owned()), "heldout is not a test split");
    refused(&|b, _| b.held_out = Some("pair".to_owned()), "which is not held out");
    refused(&|b, _| b.vocabulary.templates[1] = "a picture".to_owned(), "has no {}");
    refused(
        &|b, _| b.vocabulary.concepts.truncate(50),
        "has concept 50, expected a number below 50",
    );
    refused(
        &|b, _| b.splits[0].captions[4].clear(),
        "sample 2004 has no retrieval caption",
    );
    refused(
        &|b, _| b.splits[0].pixels = Box::new(|_| Ok(PixelBuffer::Values(vec![]))),
        "pictures of split pair",
    );
    refused(&|_, c| c.recall_at = vec![51], "recall at 51 among 50 images");
    refused(&|_, c| c.bootstrap = 0, "evaluate.bootstrap is 0");
    refused(&|_, c| c.shots = vec![0, 5], "evaluate.shots");
}

#[test]
fn an_encoder_that_breaks_its_word_is_refused() {
    #[derive(Debug)]
    struct Broken(Toy);
    impl Encoder for Broken {
        fn embed_dim(&self) -> usize {
            WIDTH
        }
        fn scale(&self) -> Result<f64> {
            self.0.scale()
        }
        fn images(&mut self, pixels: Pixels<'_>, n: usize) -> Result<Matrix> {
            let mut found = self.0.images(pixels, n)?;
            found.row_mut(0)[0] = f32::NAN;
            Ok(found)
        }
        fn texts(&mut self, ids: &[u32], n: usize) -> Result<Matrix> {
            self.0.texts(ids, n)
        }
    }
    let error =
        evaluate(&mut Broken(Toy::new(0.0)), &bundle(), &config(), 1).unwrap_err();
    let text = format!("{error:?}");
    assert!(text.contains("split pair") && text.contains("norm NaN"), "{text}");
}

#[test]
fn data_without_enough_pictures_for_a_probe_get_a_note() {
    let mut small = bundle();
    small.train = split("train", 0, vec![0, 1, 2]);
    let found = evaluate(&mut Toy::new(0.0), &small, &config(), 1).unwrap();
    assert!(found.measurements.iter().all(|m| m.task != "probe"));
    assert_eq!(found.notes.len(), 1);
    assert!(found.notes[0].contains("0 subgroups have 15 training pictures"));
}

#[test]
fn validation_of_a_perfect_model_is_one_and_shared_captions_do_not_count_against_it() {
    let bundle = bundle();
    let mut toy = Toy::new(0.0);
    let mut found =
        validate(&mut toy, &bundle.vocabulary, &bundle.validation, 7).unwrap();
    let (name, loss) = found.pop().unwrap();
    assert!(name == CONTRASTIVE && (0.0..0.1).contains(&loss), "{name} {loss}");
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|(_, value)| (value - 1.0).abs() < 1e-12), "{found:?}");
}

#[test]
fn examples_are_the_same_queries_for_every_model_best_first() {
    let bundle = bundle();
    let good = example_retrievals(&mut Toy::new(0.0), &bundle, 8, 16, 3).unwrap();
    let poor = example_retrievals(&mut Toy::new(3.0), &bundle, 8, 16, 3).unwrap();
    assert_eq!(good.len(), 8);
    for (good, poor) in good.iter().zip(&poor) {
        assert_eq!((&good.text, good.sample), (&poor.text, poor.sample));
        assert_eq!(good.own_rank, 0);
        assert_eq!(good.retrieved[0].sample, good.sample);
        assert_eq!(poor.retrieved.len(), 5);
        assert!(poor.retrieved.windows(2).all(|w| w[0].score >= w[1].score));
        let place = poor.retrieved.iter().position(|r| r.sample == poor.sample);
        let shown = place.map(num::index_u32);
        assert!(shown.is_none_or(|p| p == poor.own_rank), "{poor:?}");
    }
    assert_eq!(
        example_retrievals(&mut Toy::new(0.0), &bundle, 99, 16, 3).unwrap().len(),
        50
    );
}

/// As many concepts as the first classes, and others that no prompt names.
#[test]
fn pictures_of_what_is_no_class_take_no_part() {
    let mut bundle = bundle();
    bundle.vocabulary.classes = 40;
    bundle.held_out = None;
    let found = evaluate(&mut Toy::new(1.5), &bundle, &config(), 1).unwrap();
    let count = |task: &str, split: &str| {
        let own = found.measurements.iter().find(|m| m.task == task && m.split == split);
        own.map(|m| m.n)
    };
    assert_eq!(count("concept", "pair"), Some(40), "of 50 concepts");
    assert_eq!(count("concept", "v2"), Some(80), "of 60 concepts, two pictures each");
    assert_eq!(count("retrieval", "pair"), Some(100), "captions need no class");
    bundle.vocabulary.classes = CONCEPTS + 1;
    let error =
        evaluate(&mut Toy::new(1.5), &bundle, &config(), 1).unwrap_err().to_string();
    assert!(error.contains("61 classes among 60 concepts"), "{error}");
}
