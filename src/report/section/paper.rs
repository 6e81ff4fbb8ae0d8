//! The paper's numbers (its main tables and supplement table A.1), always in tables of their
//! own: they come from other data at another scale.

use crate::report::document::{Block, Cell, Section, Table};

const ZERO_SHOT: &[(&str, [&str; 11])] = &[
    (
        "Dense",
        [
            "34.3", "50.8", "42.6", "62.5", "54.4", "23.5", "70.6", "45.8", "42.5",
            "49.9", "62.6",
        ],
    ),
    (
        "Drop-Upcycling",
        [
            "34.1", "51.3", "42.7", "62.0", "54.5", "22.7", "70.8", "45.7", "42.9",
            "49.8", "60.9",
        ],
    ),
    (
        "Sparse Upcycling",
        [
            "34.9", "50.9", "42.9", "63.0", "55.1", "23.7", "71.2", "46.3", "42.3",
            "50.3", "62.0",
        ],
    ),
    (
        "CLIP-MoE",
        [
            "34.0", "51.5", "42.8", "62.9", "54.9", "24.5", "71.6", "46.2", "43.4",
            "50.6", "62.8",
        ],
    ),
    (
        "Cluster-aware Upcycling",
        [
            "35.4", "51.6", "43.5", "63.2", "55.1", "24.1", "72.1", "46.8", "43.5",
            "50.8", "63.3",
        ],
    ),
];

const FEW_SHOT: &[(&str, [&str; 3])] = &[
    ("Dense", ["50.4", "57.1", "72.8"]),
    ("Sparse Upcycling", ["50.9", "57.8", "73.0"]),
    ("Drop-Upcycling", ["51.1", "57.9", "73.1"]),
    ("CLIP-MoE", ["51.3", "58.1", "73.2"]),
    ("Cluster-aware Upcycling", ["51.5", "58.2", "73.3"]),
];

const TABLE_A1: &[(&str, [&str; 11])] = &[
    (
        "Drop-Upcycling (r = 0.75)",
        [
            "29.1", "45.6", "37.4", "55.7", "47.3", "12.4", "62.3", "40.1", "33.0",
            "41.8", "58.6",
        ],
    ),
    (
        "Drop-Upcycling (r = 0.50)",
        [
            "29.7", "46.5", "38.1", "56.0", "47.7", "12.9", "63.4", "40.8", "34.3",
            "42.5", "57.8",
        ],
    ),
    (
        "Drop-Upcycling (r = 0.25)",
        [
            "30.6", "47.6", "39.1", "56.7", "48.4", "13.1", "63.5", "41.0", "35.7",
            "43.1", "57.7",
        ],
    ),
    (
        "Sparse Upcycling",
        [
            "30.8", "48.0", "39.4", "57.1", "49.1", "13.8", "64.3", "41.8", "36.0",
            "43.7", "58.0",
        ],
    ),
    (
        "CLIP-MoE",
        [
            "29.5", "46.8", "38.2", "56.6", "48.1", "14.3", "64.2", "41.4", "35.7",
            "43.4", "58.8",
        ],
    ),
    (
        "DeRS-LM",
        [
            "31.0", "47.7", "39.4", "56.8", "48.6", "13.9", "64.2", "41.1", "36.4",
            "43.5", "58.1",
        ],
    ),
    (
        "Drop-SVD",
        [
            "30.7", "47.9", "39.3", "57.4", "48.8", "14.1", "64.6", "42.0", "36.1",
            "43.8", "58.6",
        ],
    ),
    (
        "Cluster-aware Upcycling",
        [
            "31.0", "48.2", "39.6", "57.3", "49.2", "14.0", "65.2", "42.3", "36.5",
            "44.1", "59.1",
        ],
    ),
];

/// Cluster initialization, EESD, then the four numbers.
const ABLATION: &[(&str, &str, [&str; 4])] = &[
    ("\u{2013}", "\u{2013}", ["34.9", "50.9", "63.0", "57.8"]),
    ("\u{2713}", "\u{2013}", ["35.1", "51.1", "63.2", "58.1"]),
    ("\u{2013}", "\u{2713}", ["34.6", "51.4", "62.7", "57.8"]),
    ("\u{2713}", "\u{2713}", ["35.4", "51.6", "63.2", "58.2"]),
];

const COLUMNS: [&str; 11] = [
    "COCO I\u{2192}T",
    "COCO T\u{2192}I",
    "COCO mean",
    "IN val",
    "IN V2",
    "IN-A",
    "IN-R",
    "IN Sketch",
    "ObjectNet",
    "IN mean",
    "VTAB natural",
];

/// The paper's tables.
pub(in crate::report) fn section() -> Section {
    Section {
        id: "paper",
        title: "The paper\u{2019}s numbers".to_owned(),
        lead: vec!["Copied from \u{201c}Enhancing Mixture-of-Experts Specialization via Cluster-Aware Upcycling\u{201d} (CVPR 2026, arXiv 2604.13508), for orientation. They come from CLIP trained on LAION-400M (4 B samples dense, 1.3 B after upcycling) and from other test sets, so no number here can be compared with one of ours. The headings of the paper\u{2019}s two COCO columns seem to be swapped against common usage: its I\u{2192}T is what we call `image_retrieval_recall@1` (text query).".to_owned()],
        blocks: vec![
            Block::Table(table("ViT-B/16, zero-shot", "The paper\u{2019}s numbers, percent: COCO recall@1; ImageNet-1k and its variants top-1; VTAB natural mean.", &COLUMNS, ZERO_SHOT)),
            Block::Table(table("ViT-B/16, few-shot and full fine-tuning on ImageNet-1k", "The paper\u{2019}s numbers, percent top-1.", &["5-shot", "10-shot", "Full fine-tuning"], FEW_SHOT)),
            Block::Details {
                summary: "ViT-B/32: supplement, table A.1".to_owned(),
                blocks: vec![Block::Table(table("ViT-B/32, zero-shot (supplement, table A.1)", "The paper\u{2019}s numbers, percent; columns as above.", &COLUMNS, TABLE_A1))],
            },
        ],
    }
}

fn table<const N: usize>(
    title: &str,
    note: &str,
    columns: &[&str],
    rows: &[(&str, [&str; N])],
) -> Table {
    let mut head = vec![Cell::words("Method")];
    head.extend(columns.iter().map(|c| Cell::number(*c)));

    let rows = rows.iter().map(|(name, values)| {
        let mut row = vec![Cell::words(*name)];
        row.extend(values.iter().map(|v| Cell::number(*v)));
        row
    });
    Table {
        title: title.to_owned(),
        note: note.to_owned(),
        rows: rows.collect(),
        head,
        foreign: true,
    }
}

/// The paper's ablation, to stand beside ours.
pub(in crate::report) fn ablation() -> Table {
    let mut head = vec![Cell::words("Cluster init"), Cell::words("EESD")];
    let columns = ["COCO I\u{2192}T", "COCO T\u{2192}I", "IN val", "IN 10-shot"];
    head.extend(columns.map(Cell::number));

    let rows = ABLATION.iter().map(|(init, eesd, values)| {
        let mut row = vec![Cell::words(*init), Cell::words(*eesd)];
        row.extend(values.iter().map(|v| Cell::number(*v)));
        row
    });
    Table {
        title: "The paper\u{2019}s ablation (ViT-B/16)".to_owned(),
        note: "The paper\u{2019}s numbers, percent, on other data at another scale: compare the pattern, not the numbers.".to_owned(),
        rows: rows.collect(),
        head,
        foreign: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_means_are_the_means_of_their_columns() {
        let number = |text: &str| text.parse::<f64>().unwrap();
        for (name, row) in ZERO_SHOT.iter().chain(TABLE_A1) {
            let retrieval = f64::midpoint(number(row[0]), number(row[1]));
            assert!((retrieval - number(row[2])).abs() < 0.1, "{name}: {retrieval}");
            let images = row[3..9].iter().map(|v| number(v)).sum::<f64>() / 6.0;
            assert!((images - number(row[9])).abs() < 0.11, "{name}: {images}");
        }
    }
}
