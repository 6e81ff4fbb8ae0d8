//! "What the paper says, what we see": every claim of the paper's page and supplement, and the
//! questions of its published review, each decided from this report's own numbers.

use crate::report::document::{Block, Cell, Section, Table};
use crate::report::evidence::{
    Decision, Finding, Pair, Part, Side, beyond, change, each_layer, few_shot_over_full,
    fine_tuned, gains, layers, logged, over_depth, probability_spread, widening_loss,
    widening_validation,
};
use crate::report::headline::{Area, Headline};
use crate::report::study::{FINAL, INIT, Study};

/// The method of the paper, and its two halves.
const BOTH: &str = "cluster-aware-eesd";
const INIT_ALONE: &str = "cluster-aware";
const EESD_ALONE: &str = "sparse-eesd";

/// What it is compared with.
const SPARSE: &str = "sparse";
const OTHERS: [&str; 4] = ["dense", SPARSE, "drop", "clip-moe"];

/// What the zero-shot benchmarks are here.
const ZERO_SHOT: [Area; 2] = [Area::Shift, Area::Retrieval];

/// The paper's cost of self-distillation, in percent of time and of memory.
const EESD_TIME: f64 = 5.3;
const EESD_MEMORY: f64 = 2.8;

/// What counts as comparable, and as no more than another: percentage points, dead experts a
/// layer, and load-balance loss, which is 1 at uniform load.
const COMPARABLE: f64 = 1.0;
const FEW_DEAD: f64 = 0.5;
const SAME_BALANCE: f64 = 0.05;

/// Layers below which a pattern over depth cannot be seen.
const DEPTH: usize = 3;

/// Parts of a training run: after the warm-up, its end, and what "converged" is.
const EARLY: Part = Part { from: 0.25, to: 0.5 };
const LATE: Part = Part { from: 0.75, to: 1.0 };
const CONVERGED: Part = Part { from: 0.9, to: 1.0 };

/// A claim and how it is decided.
struct Claim {
    place: &'static str,
    text: &'static str,
    decide: fn(&Study<'_>, &[Headline]) -> Decision,
}

/// The claims in the order of the page and the supplement, then the review's questions.
const CLAIMS: [Claim; 24] = [
    Claim {
        place: "page, table 1",
        text: "Cluster-aware Upcycling outperforms Dense, Sparse, Drop-Upcycling and CLIP-MoE on zero-shot benchmarks.",
        decide: |study, headlines| {
            let each =
                OTHERS.map(|theirs| zero_shot(study, headlines, whole(study), theirs));
            Decision::all(each.concat(), Side::Above)
        },
    },
    Claim {
        place: "page, table 2",
        text: "It outperforms them in few-shot classification.",
        decide: |study, headlines| {
            let each = OTHERS.map(|theirs| {
                let pair = Pair { ours: whole(study), theirs };
                gains(study, headlines, &[Area::Probes], pair)
            });
            Decision::all(each.concat(), Side::Above)
        },
    },
    Claim {
        place: "page, table 2",
        text: "It outperforms them in full fine-tuning.",
        decide: |study, _| {
            let each = OTHERS
                .map(|theirs| fine_tuned(study, Pair { ours: whole(study), theirs }));
            Decision::all(each.into(), Side::Above)
        },
    },
    Claim {
        place: "page",
        text: "The gains are most pronounced with few shots.",
        decide: |study, headlines| {
            let pair = Pair { ours: whole(study), theirs: SPARSE };
            Decision::all(few_shot_over_full(study, headlines, pair), Side::Above)
        },
    },
    Claim {
        place: "page, ablation",
        text: "Cluster-aware initialization alone improves on Sparse.",
        decide: |study, headlines| {
            Decision::all(zero_shot(study, headlines, INIT_ALONE, SPARSE), Side::Above)
        },
    },
    Claim {
        place: "page, ablation",
        text: "EESD alone shows modest gains.",
        decide: |study, headlines| {
            Decision::all(zero_shot(study, headlines, EESD_ALONE, SPARSE), Side::Above)
        },
    },
    Claim {
        place: "page, ablation",
        text: "On top of the cluster-aware initialization, EESD yields further improvements.",
        decide: |study, headlines| {
            Decision::all(zero_shot(study, headlines, BOTH, INIT_ALONE), Side::Above)
        },
    },
    Claim {
        place: "page, figure 4a",
        text: "Relative compactness is lower: experts are more disentangled.",
        decide: |study, _| analysis(study, "compactness", "compactness", Side::Below),
    },
    Claim {
        place: "page, figure 4b",
        text: "Experts are less similar to each other.",
        decide: |study, _| analysis(study, "similarity", "similarity", Side::Below),
    },
    Claim {
        place: "page, figure 4c",
        text: "Routing entropy starts low, increases during training, and stays below that of Sparse.",
        decide: |study, _| {
            let (metric, what) = ("entropy_normalised", "entropy / ln E");
            let rise = change(
                study,
                metric,
                "rise of entropy / ln E",
                (whole(study), INIT, FINAL),
            );
            let pair = Pair { ours: whole(study), theirs: SPARSE };
            let end = layers(study, metric, what, pair);
            Decision::of(&[(rise, Side::Above), (end, Side::Below)])
        },
    },
    Claim {
        place: "page, figures 4d and 5",
        text: "Utilization is balanced, and no expert collapses.",
        decide: |study, _| {
            let pair = Pair { ours: whole(study), theirs: SPARSE };
            let dead = layers(study, "dead_experts", "dead experts a layer", pair);
            Decision::all(vec![dead], Side::AtMost(FEW_DEAD))
        },
    },
    Claim {
        place: "page",
        text: "EESD costs about 5.3 % of the time.",
        decide: |study, _| {
            let pair = Pair { ours: BOTH, theirs: INIT_ALONE };
            let time =
                beyond(study, "training time", EESD_TIME, pair, |cost| cost.training);
            Decision::of_cost(time, EESD_TIME)
        },
    },
    Claim {
        place: "page",
        text: "EESD costs about 2.8 % of the memory.",
        decide: |study, _| {
            let pair = Pair { ours: BOTH, theirs: INIT_ALONE };
            let memory = beyond(study, "memory", EESD_MEMORY, pair, |cost| cost.memory);
            Decision::of_cost(memory, EESD_MEMORY)
        },
    },
    Claim {
        place: "supplement A, table A.1",
        text: "Drop-Upcycling is better with smaller ratios: 0.25 before 0.5 before 0.75.",
        decide: |study, headlines| {
            let pairs = [("drop", "drop-50"), ("drop-50", "drop-75")];
            let each =
                pairs.map(|(ours, theirs)| zero_shot(study, headlines, ours, theirs));
            Decision::all(each.concat(), Side::Above)
        },
    },
    Claim {
        place: "supplement A, table A.1",
        text: "Drop-Upcycling at its best ratio is below Sparse.",
        decide: |study, headlines| {
            Decision::all(zero_shot(study, headlines, "drop", SPARSE), Side::Below)
        },
    },
    Claim {
        place: "supplement A, table A.1",
        text: "Drop-SVD is comparable to Sparse.",
        decide: |study, headlines| {
            let all = zero_shot(study, headlines, "drop-svd", SPARSE);
            Decision::all(all, Side::Within(COMPARABLE))
        },
    },
    Claim {
        place: "supplement B, figure B.1",
        text: "Utilization is slightly more diverse than that of Sparse.",
        decide: |study, _| {
            analysis(study, "utilisation_cv", "load variation", Side::Above)
        },
    },
    Claim {
        place: "supplement B, figure B.2a",
        text: "The load-balance loss converges to a value comparable to or below that of Sparse.",
        decide: |study, _| {
            let pair = Pair { ours: whole(study), theirs: SPARSE };
            let balance =
                logged(study, "load-balance loss", CONVERGED, pair, |row| row.balance);
            Decision::all(vec![balance], Side::AtMost(SAME_BALANCE))
        },
    },
    Claim {
        place: "supplement B",
        text: "The gains grow with the capacity of the model (ViT-B/32 to ViT-B/16).",
        decide: |_, _| {
            Decision::not_testable(
                "a report has one model; two towers of a few hundred thousand parameters say nothing about a factor between models of 150 million",
            )
        },
    },
    Claim {
        place: "supplement B, figures B.2b and B.2c",
        text: "The gaps in loss and on benchmarks widen with the samples seen.",
        decide: |study, _| {
            let pair = Pair { ours: whole(study), theirs: SPARSE };
            let mut all = vec![widening_loss(study, (EARLY, LATE), pair)];
            all.extend(widening_validation(study, pair));
            Decision::all(all, Side::Above)
        },
    },
    Claim {
        place: "supplement B, figure B.3",
        text: "Similarity decreases over depth and rises in the last layer, and entropy is higher where experts are more similar.",
        decide: |study, _| {
            let seen = over_depth(study, DEPTH, whole(study));
            let found = study.moe_layers().len();
            if seen.is_empty() {
                return Decision::not_testable(&format!(
                    "the pattern needs {DEPTH} or more MoE layers in a tower; both towers together have {found} here"
                ));
            }
            Decision::of(&seen)
        },
    },
    Claim {
        place: "supplement B, figure B.3",
        text: "Similarity and entropy are lower at all depths.",
        decide: |study, _| {
            let pair = Pair { ours: whole(study), theirs: SPARSE };
            let mut all = each_layer(study, "similarity", "similarity", pair);
            all.extend(each_layer(study, "entropy_normalised", "entropy / ln E", pair));
            Decision::all(all, Side::Below)
        },
    },
    Claim {
        place: "supplement B, figure B.4",
        text: "Routing probabilities vary more between experts than those of Sparse.",
        decide: |study, _| {
            let pair = Pair { ours: whole(study), theirs: SPARSE };
            Decision::all(vec![probability_spread(study, pair)], Side::Above)
        },
    },
    Claim {
        place: "review",
        text: "It is the clusters: random subspaces, shuffled clusters, and the router without truncated experts, are each worse.",
        decide: |study, headlines| {
            let controls = ["random-subspace", "random-clusters", "router-only"];
            let each = controls.map(|own| zero_shot(study, headlines, INIT_ALONE, own));
            Decision::all(each.concat(), Side::Above)
        },
    },
];

/// The run that stands for the method: with self-distillation where there is such a run, else
/// with its initialization alone.
fn whole(study: &Study<'_>) -> &'static str {
    if study.has(BOTH) { BOTH } else { INIT_ALONE }
}

fn zero_shot(
    study: &Study<'_>,
    headlines: &[Headline],
    ours: &str,
    theirs: &str,
) -> Vec<Finding> {
    gains(study, headlines, &ZERO_SHOT, Pair { ours, theirs })
}

/// The paper's method against Sparse in an analysis, mean over layers.
fn analysis(study: &Study<'_>, metric: &str, what: &str, side: Side) -> Decision {
    let pair = Pair { ours: whole(study), theirs: SPARSE };
    Decision::all(vec![layers(study, metric, what, pair)], side)
}

/// The claims, decided.
pub(in crate::report) fn section(study: &Study<'_>, headlines: &[Headline]) -> Section {
    let head = ["Where", "What the paper says", "What we see", "Number"];
    let rows = CLAIMS.iter().map(|claim| {
        let Decision { verdict, evidence, measured } = (claim.decide)(study, headlines);
        let seen = |text: String| Cell { measured, ..Cell::words(text) };
        vec![
            Cell::words(claim.place),
            Cell::words(claim.text),
            seen(verdict.words().to_owned()),
            seen(evidence.join("; ")),
        ]
    });

    let table = Table {
        title: "Claims".to_owned(),
        note: format!(
            "Differences of a run from another with their 95 % intervals. Those of accuracies and recalls, in percentage points and after training, are paired by seed and by picture and cover the luck of both; those of losses, experts and routing are paired by seed and have Student\u{2019}s tails. A claim is confirmed where every interval lies where it says, and not confirmed where one does not: the difference may be absent, or too small for this many seeds. Comparable means within {COMPARABLE} point, a load-balance loss no more than {SAME_BALANCE} above, {FEW_DEAD} dead experts a layer more, and a cost up to twice the paper\u{2019}s. Claims are decided one by one, without a correction for their number."
        ),
        head: head.map(Cell::words).into(),
        rows: rows.collect(),
        foreign: false,
    };
    Section {
        id: "claims",
        title: "What the paper says, what we see".to_owned(),
        lead: vec!["Every claim of the paper\u{2019}s page and supplement, and the question of its published review, decided from the numbers of this report. Other data, other sizes: what is not confirmed here may hold there. Where no run of this report has self-distillation, Cluster-aware Upcycling stands for its initialization alone.".to_owned()],
        blocks: vec![Block::Table(table)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::headline::headlines;
    use crate::report::sample;

    #[test]
    fn every_claim_is_decided_with_a_number_or_a_reason() {
        let inputs = sample::inputs(&[]);
        let study = Study::new(&inputs).unwrap();
        let headlines = headlines(&study);
        for claim in &CLAIMS {
            let decision = (claim.decide)(&study, &headlines);
            assert!(!decision.evidence.is_empty(), "{}", claim.text);
            assert!(claim.text.ends_with('.'), "{}", claim.text);
        }
    }
}
