//! The report as a whole: what it claims, what it survives, and that it is one safe file.

use std::collections::BTreeMap;

use super::sample::{inputs, set, spoil};
use super::{Rendered, ReportInputs, render};

fn html(inputs: &ReportInputs) -> String {
    render(inputs).unwrap().html
}

/// Sets shift of the showcase and the reference, and makes the rest equal.
fn contest(showcase: &[f64], reference: &[f64]) -> String {
    let mut inputs = inputs(&[]);
    let by_seed =
        |v: &[f64]| -> BTreeMap<u64, f64> { (1..).zip(v.iter().copied()).collect() };
    let metrics = [
        "image_retrieval_recall@1",
        "text_retrieval_recall@1",
        "logistic-5",
        "logistic-10",
    ];
    for metric in metrics {
        for run in ["sparse", "cluster-aware-eesd"] {
            set(&mut inputs, run, metric, &by_seed(&[0.5, 0.4, 0.6]));
        }
    }
    set(&mut inputs, "cluster-aware-eesd", "shift", &by_seed(showcase));
    set(&mut inputs, "sparse", "shift", &by_seed(reference));
    let page = html(&inputs);
    let start = page.find("class=\"answer\">").unwrap() + 15;
    page[start..].split("</p>").next().unwrap().to_owned()
}

#[test]
fn a_win_is_claimed_only_where_the_interval_excludes_zero() {
    let clear = contest(&[0.21, 0.222, 0.229], &[0.19, 0.2, 0.21]);
    assert!(clear.starts_with("Cluster-aware + EESD beats Sparse on shift;"), "{clear}");
    assert!(clear.contains("the difference is within the noise"), "{clear}");
    let noisy = contest(&[0.21, 0.19, 0.23], &[0.19, 0.2, 0.21]);
    assert!(noisy.ends_with("over 3 seeds, all are within the noise."), "{noisy}");
    let worse = contest(&[0.19, 0.2, 0.21], &[0.21, 0.222, 0.229]);
    assert!(worse.contains("is worse than Sparse on shift"), "{worse}");
    assert!(!worse.contains("beats"), "{worse}");
    let tied = contest(&[0.2, 0.2, 0.2], &[0.19, 0.19, 0.19]);
    assert!(!tied.contains("beats"), "{tied}");
}

#[test]
fn one_seed_claims_nothing() {
    let page = html(&inputs(&["seeds=[1]"]));
    assert!(page.contains("One seed gives no interval"));
    assert!(!page.contains(" beats "));
    assert!(!page.contains("class=\"n best\""));
}

#[test]
fn missing_pieces_leave_gaps_not_failures() {
    let mut few = inputs(&[]);
    few.runs.retain(|r| r.run == "sparse" || r.run == "dense");
    few.clusterings.clear();
    few.subspaces.clear();
    few.retrievals.clear();
    few.pictures.clear();
    let page = html(&few);
    assert!(page.contains("The showcase run is missing"));
    assert!(!page.contains("id=\"ablation\"") && !page.contains("id=\"retrieval\""));
    let mut dense = inputs(&[]);
    dense.runs.retain(|r| r.run == "dense");
    let page = html(&dense);
    assert!(page.contains("no reference run") && !page.contains("id=\"experts\""));
    let mut empty = inputs(&[]);
    empty.runs.iter_mut().for_each(|r| {
        *r = super::RunInputs { run: r.run.clone(), seed: r.seed, ..Default::default() };
    });
    assert!(render(&empty).is_ok());
    empty.runs.clear();
    assert!(render(&empty).unwrap_err().to_string().contains("no run"));
}

#[test]
fn figures_that_are_not_numbers_do_not_reach_the_page() {
    let mut spoiled = inputs(&[]);
    for run in spoiled.runs.iter_mut().filter(|r| r.seed == 2 || r.run == "drop") {
        spoil(run);
    }
    let Rendered { html, markdown, .. } = render(&spoiled).unwrap();
    for page in [&html, &markdown] {
        assert!(!page.contains("NaN") && !page.contains("inf "));
    }
    assert!(html.contains("n = 2 seeds"));
}

#[test]
fn the_page_is_one_file_and_foreign_text_cannot_leave_its_element() {
    let mut hostile = inputs(&[]);
    hostile.config.report.title = "</title><script>1</script> `a|b`".into();
    hostile.dataset.attribution.push("<img src=x onerror=alert(1)> | `c`".into());
    hostile.pictures.insert(0, b"<svg onload=1>".to_vec());
    let Rendered { html, markdown, .. } = render(&hostile).unwrap();
    assert!(!html.contains("<script") && !html.contains("<img src=x"));
    assert!(html.contains("&lt;script&gt;alert"));
    for link in ["http://", "https://", "src=\"/", "url(", "@import", "file:"] {
        assert!(!html.contains(link), "{link}");
    }
    assert!(!markdown.contains("<script") && !markdown.contains("<img"));
    for (open, close) in
        [("<table", "</table>"), ("<svg", "</svg>"), ("<details", "</details>")]
    {
        assert_eq!(html.matches(open).count(), html.matches(close).count(), "{open}");
    }
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let once = || render(&inputs(&[])).unwrap();
    let (a, b) = (once(), once());
    assert!(a.html == b.html && a.markdown == b.markdown);
    assert_eq!(format!("{:?}", a.comparison), format!("{:?}", b.comparison));
}

#[test]
fn markdown_tables_have_equal_rows() {
    let markdown = render(&inputs(&[])).unwrap().markdown;
    let mut width = None;
    for line in markdown.lines() {
        if line.starts_with('|') {
            let cells = line.replace("\\|", "").matches('|').count();
            assert_eq!(*width.get_or_insert(cells), cells, "{line}");
        } else {
            width = None;
        }
    }
}

#[test]
fn the_comparison_has_every_metric_and_no_difference_from_itself() {
    let inputs = inputs(&[]);
    let rows = render(&inputs).unwrap().comparison;
    // Sixteen metrics before and after training, and the loss of training.
    assert_eq!(rows.len(), inputs.config.runs.len() * (16 * 2 + 1));
    for row in rows {
        assert_eq!(row.n, 3);
        assert!(row.run != "sparse" || row.difference == 0.0);
    }
}
