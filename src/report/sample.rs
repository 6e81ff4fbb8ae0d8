//! Synthetic rows that look like those of real runs: the report is tested with them.

use std::collections::BTreeMap;

use rand::RngExt as _;

use super::gallery::{Gallery, GallerySample};
use super::inputs::*;
use crate::config::{Config, Overrides, load_default};
use crate::num::{index_u32, round_f32};
use crate::tables::{
    AnalysisRow, ClusterRow, EmbeddingRow, ExpertSimilarityRow, IterationRow, Layer,
    LogRow, Measurement, MetricRow, PixelRow, RetrievalRow, RoutedTokenRow, RoutingRow,
    SimilarityRow, SpectrumRow, SubspaceFigures, SubspaceRow, ValidationRow, WHOLE_LAYER,
};

/// The MoE layers of the default configuration.
fn layers() -> [Layer; 3] {
    [("vision", 1), ("vision", 3), ("text", 1)]
        .map(|(tower, block)| Layer::new(tower, block))
}

const SHIFTS: [&str; 4] = ["v2", "3d", "sketch", "blob"];

/// Inputs of the shipped comparison on the emoji, whose seven runs fill every section, with
/// overrides.
pub(super) fn inputs(set: &[&str]) -> ReportInputs {
    let set = set.iter().map(|&s| s.to_owned()).collect();
    let profile = Some("emoji".to_owned());
    from_config(load_default(&Overrides { profile, set }).unwrap())
}

/// Inputs for a configuration.
pub(super) fn from_config(config: Config) -> ReportInputs {
    let mut runs = Vec::new();
    for (place, name) in ordered_runs(&config).into_iter().enumerate() {
        for &seed in &config.seeds {
            runs.push(run(&config, &name, place, seed));
        }
    }

    // Seeds may share a base model, and runs a variant of subspaces: both are made once.
    let clusterings =
        config.base_seeds().iter().map(|&seed| clustering(&config, seed)).collect();

    let used: std::collections::BTreeSet<_> = config
        .runs
        .values()
        .filter_map(|r| config.inits.get(&r.init)?.subspaces.clone())
        .collect();

    let subspaces = config
        .base_seeds()
        .iter()
        .flat_map(|&seed| used.iter().map(move |variant| (variant, seed)))
        .map(|(variant, seed)| subspaces(&config, variant, seed))
        .collect();

    ReportInputs {
        dataset: dataset(),
        runs,
        clusterings,
        subspaces,
        retrievals: retrievals(),
        gallery: gallery(&config),
        pictures: (0..60).map(|sample| (sample, picture(sample))).collect(),
        pixels: Vec::new(),
        sweep: Vec::new(),
        sets: Vec::new(),
        config,
    }
}

/// Both classifiers on pixels, at this accuracy on every split.
pub(super) fn pixels(accuracy: f64) -> Vec<PixelRow> {
    let tasks = [("summary", "shift", "shift"), ("concept", "pair", "acc1")];
    let of = |classifier: &str| {
        let classifier = classifier.to_owned();
        let row = move |(task, split, metric): (&str, &str, &str)| PixelRow {
            classifier: classifier.clone(),
            pictures: 9_270,
            measured: Measurement {
                task: task.to_owned(),
                split: split.to_owned(),
                metric: metric.to_owned(),
                value: accuracy,
                low: accuracy - 0.01,
                high: accuracy + 0.01,
                n: 400,
                resampled: vec![],
            },
        };
        tasks.map(row)
    };
    [of("nearest"), of("linear")].concat()
}

/// A factor of three values over three seeds: the lowest loses most, and the highest gains.
pub(super) fn swept() -> Vec<SweepInputs> {
    let values = [("0.9", 0.2, false), ("0.99", 0.0, true), ("0.999", -0.1, false)];
    let of_value = |(tau, moved, is_default): (&str, f64, bool)| {
        let of_seed = |seed: u64| {
            let luck = 0.01 * (seed as f64 - 2.0);
            let row = |step: u32, metric: &str, value: f64| ValidationRow {
                step,
                metric: metric.to_owned(),
                value,
            };
            // Seeds move a difference a little too, or there would be no interval.
            let loss = 2.0 + moved * (1.0 + luck) + luck;
            let validation = vec![
                row(0, crate::eval::CONTRASTIVE, 3.0),
                row(40, crate::eval::CONTRASTIVE, loss),
                row(40, "retrieval/image_retrieval_recall@1", 0.5 - 0.1 * moved),
            ];
            let clip = 1.0 + 0.5 * moved;
            let log = (0..40).map(|step| LogRow { step, clip, ..LogRow::default() });
            (seed, Swept { log: log.collect(), validation })
        };
        SweepInputs {
            factor: "tau".to_owned(),
            run: "cluster-aware".to_owned(),
            value: format!("subspaces.paper.tau={tau}"),
            is_default,
            seeds: (1..4).map(of_seed).collect(),
        }
    };
    values.into_iter().map(of_value).collect()
}

fn noise(rng: &mut crate::rng::Stream) -> f64 {
    // The sum of twelve uniform draws has mean 6 and variance 1, and is nearly normal.
    (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
}

fn dataset() -> DatasetMeta {
    let splits = [
        ("train", 9270),
        ("val", 457),
        ("pair", 455),
        ("heldout", 646),
        ("v2", 1594),
        ("3d", 1593),
        ("sketch", 1594),
        ("blob", 1233),
    ];

    let texts = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect();
    DatasetMeta {
        source: "emoji".into(),
        splits: splits.into_iter().map(|(s, n)| (s.to_owned(), n)).collect(),
        tests: texts(&["pair", "heldout", "v2", "3d", "sketch", "blob"]),
        shifts: texts(&SHIFTS),
        retrieval: "pair".into(),
        held_out: Some("heldout".into()),
        classes: None,
        templates: texts(&["a drawing of {}", "{}"]),
        attribution: texts(&[
            "Noto Emoji, Google, Apache-2.0",
            "Twemoji, Twitter and contributors, CC-BY-4.0",
            "OpenMoji, HfG Schwäbisch Gmünd, CC-BY-SA-4.0",
        ]),
    }
}

fn run(config: &Config, name: &str, place: usize, seed: u64) -> RunInputs {
    let mut rng = crate::rng::stream(seed, &format!("sample/{name}"));
    let mut base = crate::rng::stream(seed, "sample/base");

    let init = &config.runs[name].init;
    let method = config.inits[init].method.clone();
    let dense = method == "dense";
    let clustered = init.contains("cluster-aware");

    // Similarity and normalized entropy before and after training, as the methods
    // differ in them on real runs.
    let (similar, entropy) = match (clustered, method.as_str()) {
        (true, _) => ((0.93, 0.84), (0.43, 0.53)),
        (_, "router-only") => ((1.0, 0.92), (0.44, 0.55)),
        (_, "drop" | "drop-svd") => ((0.78, 0.76), (0.99, 0.93)),
        _ => ((1.0, 0.94), (0.99, 0.93)),
    };

    // All runs of a seed share its luck, which a paired difference must cancel.
    let lift = if clustered { 0.009 } else { 0.0008 * place as f64 }
        + 0.4 * config.runs[name].eesd * 0.1;
    let luck = 0.004 * noise(&mut base);

    let mut out = RunInputs {
        run: name.to_owned(),
        seed,
        facts: Facts {
            parameters_total: Some(if dense { 421_633 } else { 918_721 }),
            parameters_active: Some(if dense { 421_633 } else { 587_000 }),
        },
        metrics: metrics(&mut rng, luck, lift, clustered),
        ..RunInputs::default()
    };

    curves(config, &mut out, &mut rng, (dense, entropy));
    if !dense {
        analyze(config, &mut out, &mut rng, (similar, entropy));
    }
    out
}

fn metrics(
    rng: &mut crate::rng::Stream,
    luck: f64,
    lift: f64,
    cut: bool,
) -> Vec<MetricRow> {
    let figures = [
        ("summary", "shift", "shift", 0.156, 0.188),
        ("concept", "pair", "acc1", 0.198, 0.243),
        ("concept", "pair", "acc5", 0.44, 0.49),
        ("concept", "v2", "acc1", 0.209, 0.24),
        ("concept", "3d", "acc1", 0.177, 0.2),
        ("concept", "sketch", "acc1", 0.058, 0.08),
        ("concept", "blob", "acc1", 0.182, 0.22),
        ("heldout", "heldout", "acc1", 0.15, 0.162),
        ("retrieval", "pair", "image_retrieval_recall@1", 0.401, 0.455),
        ("retrieval", "pair", "image_retrieval_recall@5", 0.73, 0.78),
        ("retrieval", "pair", "text_retrieval_recall@1", 0.41, 0.47),
        ("group", "pair", "acc1", 0.55, 0.58),
        ("subgroup", "pair", "acc1", 0.31, 0.34),
        ("probe", "shift", "logistic-5", 0.191, 0.195),
        ("probe", "shift", "logistic-10", 0.204, 0.213),
        ("probe", "shift", "ridge-5", 0.185, 0.19),
    ];

    let mut rows = Vec::new();
    for (task, split, metric, init, end) in figures {
        let row = |point: &str, value: f64| MetricRow {
            point: point.to_owned(),
            measured: Measurement {
                task: task.to_owned(),
                split: split.to_owned(),
                metric: metric.to_owned(),
                value,
                ..Measurement::default()
            },
        };

        // Truncated experts lose some accuracy until they are trained.
        let loss = if cut { 0.95 } else { 1.0 };
        rows.push(row("init", init * loss + luck));
        rows.push(row("final", end + luck + lift + 0.0022 * noise(rng)));
    }
    rows
}

fn curves(
    config: &Config,
    out: &mut RunInputs,
    rng: &mut crate::rng::Stream,
    (dense, entropy): (bool, (f64, f64)),
) {
    let (steps, experts) = (config.train.optim.steps, config.moe.experts);

    let level = 0.95 + 0.01 * noise(rng);

    for step in 0..steps {
        let done = step as f64 / steps as f64;
        let bump =
            0.6 * (-(done * 40.0)).exp() + 0.25 * (-((done - 0.12) / 0.09).powi(2)).exp();

        let clip = level + 0.35 * (1.0 - done) + bump + 0.06 * noise(rng);

        let step = index_u32(step);
        let row =
            LogRow { step, loss: clip + 0.02, clip, balance: 1.02, ..LogRow::default() };
        out.log.push(row);

        // Routers are recorded at every tenth step.
        if dense || !step.is_multiple_of(10) {
            continue;
        }

        for layer in layers() {
            let rise = 1.0 - (-done * 8.0).exp();
            let value = entropy.0 + (entropy.1 - entropy.0) * rise + 0.004 * noise(rng);

            let loads: Vec<f64> = (0..experts)
                .map(|e| 1.0 + 0.08 * (e as f64 - 1.5) + 0.02 * noise(rng))
                .collect();
            let total: f64 = loads.iter().sum();

            out.routing.push(RoutingRow {
                step,
                layer: layer.clone(),
                entropy: value.min(1.0) * (experts as f64).ln(),
                utilisation: loads.iter().map(|l| round_f32(l / total)).collect(),
            });
        }
    }

    for step in (0..=steps).step_by(config.train.optim.validate_every.max(1)) {
        let done = step as f64 / steps as f64;
        let value = 0.19 + 0.06 * done.sqrt() + 0.003 * noise(rng);
        for metric in ["acc1", "retrieval/image_retrieval_recall@1"] {
            out.validation.push(ValidationRow {
                step: index_u32(step),
                metric: metric.to_owned(),
                value,
            });
        }

        // Experts drift apart from copies.
        let similarity = 1.0 - 0.1 * done;
        let row =
            |layer| ExpertSimilarityRow { step: index_u32(step), layer, similarity };
        if !dense {
            out.trained_similarity.extend(layers().into_iter().map(row));
        }
    }
}

fn analyze(
    config: &Config,
    out: &mut RunInputs,
    rng: &mut crate::rng::Stream,
    (similar, entropy): ((f64, f64), (f64, f64)),
) {
    let experts = config.moe.experts;
    for (depth, layer) in layers().into_iter().enumerate() {
        for (point, similar, entropy) in
            [("init", similar.0, entropy.0), ("final", similar.1, entropy.1)]
        {
            let similar: f64 =
                similar - 0.04 * depth as f64 * (1.0 - similar) + 0.002 * noise(rng);

            let mut push = |metric: &str, expert: u32, value: f64| {
                out.analysis.push(AnalysisRow {
                    point: point.to_owned(),
                    layer: layer.clone(),
                    metric: metric.to_owned(),
                    expert,
                    value,
                });
            };

            // Copies do not differ from the dense weights, so a cosine of differences
            // is undefined.
            let copies = similar > 0.995;
            push("similarity", WHOLE_LAYER, similar.min(1.0));
            push(
                "similarity_of_differences",
                WHOLE_LAYER,
                if copies { f64::NAN } else { 0.12 },
            );

            push("entropy", WHOLE_LAYER, entropy * 1.386);

            push(
                "entropy_normalised",
                WHOLE_LAYER,
                (entropy - 0.03 * depth as f64).min(1.0),
            );
            push("utilisation_cv", WHOLE_LAYER, 0.18);
            push("dead_experts", WHOLE_LAYER, 0.0);
            push("pooled_dead_experts", WHOLE_LAYER, 2.0);
            for (expert, load) in [0.5, 0.48, 0.02, 0.0].into_iter().enumerate() {
                push("pooled_utilisation", index_u32(expert), load);
            }
            push(
                "compactness",
                WHOLE_LAYER,
                if copies { 9.0 } else { 4.0 + 2.0 * entropy },
            );
            push("compactness_trace_ratio", WHOLE_LAYER, 3.1);
            push("compactness_within_share", WHOLE_LAYER, 0.75);

            let loads: Vec<f64> =
                (0..experts).map(|_| 0.6 + rng.random::<f64>()).collect();
            let total: f64 = loads.iter().sum();

            for (expert, load) in loads.iter().enumerate() {
                push("utilisation", index_u32(expert), load / total);
                push(
                    "routing_probability",
                    index_u32(expert),
                    1.0 - 0.6 * entropy + 0.05 * load,
                );
            }

            for expert in 0..experts {
                for other in 0..experts {
                    let cosine = if expert == other {
                        1.0
                    } else {
                        (similar + 0.01 * noise(rng)).min(1.0)
                    };
                    out.similarity.push(SimilarityRow {
                        point: point.to_owned(),
                        layer: layer.clone(),
                        expert: index_u32(expert),
                        other: index_u32(other),
                        cosine,
                    });
                }
            }
        }
    }
}

fn clustering(config: &Config, seed: u64) -> Clustering {
    let mut rng = crate::rng::stream(seed, "sample/cluster");
    let mut out = Clustering { seed, ..Clustering::default() };
    for layer in layers() {
        for cluster in 0..config.moe.experts {
            out.clusters.push(ClusterRow {
                layer: layer.clone(),
                cluster: index_u32(cluster),
                size: rng.random_range(4_000..12_000),
                mean_cosine: 0.6 + 0.2 * rng.random::<f64>(),
            });
        }

        // Restart 2 wins by construction, so that the chosen one is not the first.
        for restart in 0..config.cluster.restarts {
            let top =
                0.62 + 0.01 * rng.random::<f64>() + if restart == 2 { 0.01 } else { 0.0 };

            for iteration in 0..rng.random_range(12..30_u32) {
                out.iterations.push(IterationRow {
                    layer: layer.clone(),
                    restart: index_u32(restart),
                    iteration,
                    objective: top - 0.08 * (-f64::from(iteration) * 0.35).exp(),
                    refilled: 0,
                    chosen: restart == 2,
                });
            }
        }
    }
    out
}

fn subspaces(config: &Config, variant: &str, seed: u64) -> Subspaces {
    let mut rng = crate::rng::stream(seed, &format!("sample/subspaces/{variant}"));

    let mut out = Subspaces { variant: variant.to_owned(), seed, ..Subspaces::default() };
    for (layer, matrix) in
        layers().into_iter().flat_map(|l| [(l.clone(), "fc1"), (l, "fc2")])
    {
        for expert in 0..index_u32(config.moe.experts) {
            // Energies fall geometrically behind a large first one: the mean of the
            // cluster.
            let fall = 0.12 + 0.04 * rng.random::<f64>();
            let raw: Vec<f64> = (0..64)
                .map(|i| (-fall * f64::from(i)).exp() + if i == 0 { 3.0 } else { 0.0 })
                .collect();
            let total: f64 = raw.iter().sum();

            // The rank rule of the method at a threshold of 0.99.
            let mut kept = 0.0;
            let mut rank = 0;

            for (index, value) in raw.iter().enumerate() {
                let energy = value / total;
                if kept < 0.99 {
                    kept += energy;
                    rank = index_u32(index) + 1;
                }

                out.spectra.push(SpectrumRow {
                    layer: layer.clone(),
                    expert,
                    matrix: matrix.to_owned(),
                    index: index_u32(index),
                    energy,
                });
            }

            out.experts.push(SubspaceRow {
                layer: layer.clone(),
                expert,
                matrix: matrix.to_owned(),
                figures: SubspaceFigures {
                    tokens: rng.random_range(4_000..12_000),
                    rank,
                    full_rank: 64,
                    retained: kept,
                    error_inside: 1.0 - kept,
                    error_outside: 3.0 * (1.0 - kept),
                    shrinkage: 0.0,
                },
                cross: 0.0,
            });
        }
    }
    out
}

fn retrievals() -> Vec<RetrievalRow> {
    let captions = [
        "grinning face",
        "flag: Japan, country",
        "red apple, fruit, food",
        "<script>alert('x')</script> & \"quotes\"",
        "woman astronaut, space, rocket",
        "house with garden",
        "baby chick",
        "fire engine, truck, red",
    ];

    let mut rows = Vec::new();
    for (query, text) in captions.into_iter().enumerate() {
        let query = index_u32(query);
        for rank in 0..10 {
            // Query 3 never finds its own picture, which the sheet shows apart.
            let own = if query == 3 { 99 } else { query % 7 };
            let retrieved =
                if rank == own { query } else { 10 + (query * 7 + rank) % 50 };

            rows.push(RetrievalRow {
                query,
                text: text.to_owned(),
                sample: query,
                own_rank: own,
                rank,
                retrieved,
                score: 0.62 - 0.03 * round_f32(f64::from(rank)),
            });
        }
    }
    rows
}

/// Forty samples of three categories; the runs of the report's pictures send their tokens
/// to experts by chance.
fn gallery(config: &Config) -> Gallery {
    let samples = (1000..1040_u32).map(|sample| GallerySample {
        sample,
        // The first category is the most frequent one.
        category: crate::num::widen((sample + 2) % 3),
        caption: format!("sample <{sample}> & \"more\""),
        picture: picture(sample),
    });
    let mut gallery = Gallery {
        samples: samples.collect(),
        categories: ["animals & nature", "flags", "objects"].map(str::to_owned).into(),
        patches: 4,
        ..Gallery::default()
    };
    let dense = config.runs.iter().find(|(_, run)| is_dense(config, run));
    let report = [&config.report.reference, &config.report.showcase];
    for name in dense.map(|(name, _)| name).into_iter().chain(report) {
        let mut rng = crate::rng::stream(1, &format!("sample/gallery/{name}"));
        let moe = dense.is_none_or(|(dense, _)| dense != name);
        let (mut tokens, mut places) = (Vec::new(), Vec::new());
        for point in ["init", "final"] {
            for sample in 1000..1040_u32 {
                for tower in ["vision", "text"] {
                    let (x, y) = (rng.random(), rng.random());
                    let (point, tower) = (point.to_owned(), tower.to_owned());
                    places.push(EmbeddingRow { point, tower, sample, x, y });
                }
                let routed = layers().into_iter().filter(|_| moe);
                for layer in routed {
                    for position in 0..if layer.tower == "vision" { 17 } else { 4 } {
                        let words = ["", "a ", "red ", "<b>"];
                        let text = if layer.tower == "vision" { 0 } else { position };
                        tokens.push(RoutedTokenRow {
                            point: point.to_owned(),
                            layer: layer.clone(),
                            sample,
                            position,
                            text: words[crate::num::widen(text)].to_owned(),
                            expert: rng.random_range(0..index_u32(config.moe.experts)),
                            probability: 0.5,
                            cosine: rng.random(),
                        });
                    }
                }
            }
        }
        gallery.tokens.insert(name.clone(), tokens);
        gallery.embeddings.insert(name.clone(), places);
    }
    gallery
}

/// A disc on a square, colored by its number.
fn picture(sample: u32) -> Vec<u8> {
    let mut rng = crate::rng::stream(u64::from(sample), "sample/picture");
    let mut color = || image::Rgb([rng.random(), rng.random(), rng.random::<u8>()]);
    let (disc, eye) = (color(), color());

    let canvas = image::RgbImage::from_fn(32, 32, |x, y| {
        let from =
            |cx: i64, cy: i64| (i64::from(x) - cx).pow(2) + (i64::from(y) - cy).pow(2);
        if from(11, 13) < 9 || from(21, 13) < 9 {
            eye
        } else if from(16, 16) < 190 {
            disc
        } else {
            image::Rgb([255, 255, 255])
        }
    });

    let mut bytes = std::io::Cursor::new(Vec::new());
    canvas.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Replaces every value of a run by NaN.
pub(super) fn spoil(run: &mut RunInputs) {
    run.metrics.iter_mut().for_each(|r| r.measured.value = f64::NAN);
    run.analysis.iter_mut().for_each(|r| r.value = f64::NAN);
    run.similarity.iter_mut().for_each(|r| r.cosine = f64::NAN);
    run.log.iter_mut().for_each(|r| r.clip = f64::NAN);
    run.routing.iter_mut().for_each(|r| r.entropy = f64::NAN);
}

/// Sets one headline metric of a run after training at every seed.
pub(super) fn set(
    inputs: &mut ReportInputs,
    run: &str,
    metric: &str,
    values: &BTreeMap<u64, f64>,
) {
    for one in inputs.runs.iter_mut().filter(|r| r.run == run) {
        let metrics = one.metrics.iter_mut();
        for row in metrics.filter(|r| r.measured.metric == metric && r.point == "final") {
            row.measured.value = values[&one.seed];
        }
    }
}
