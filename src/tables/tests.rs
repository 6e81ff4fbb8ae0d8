//! Rows survive their file, wrong files are named, and the documentation lists what is there.

use super::*;
use crate::io::table::{Column, TableReader};

/// The columns of a table: names and types, in order.
type Columns = Vec<(String, String)>;

/// Place in the documentation, file and columns of every row struct.
fn structs() -> Vec<(&'static str, &'static str, Columns)> {
    fn of<R: Row>(section: &'static str) -> (&'static str, &'static str, Columns) {
        let columns =
            R::columns().into_iter().map(|c| (c.name.to_owned(), c.kind.to_owned()));
        (section, R::FILE, columns.collect())
    }
    // The vectors of activations stand beside their rows.
    let none = Activations { tokens: vec![], width: 2, inputs: vec![] };
    let none = none.into_table().unwrap();
    let columns = none.columns().iter();
    let recorded = columns.map(|(name, c)| (name.clone(), c.kind().to_owned())).collect();
    vec![
        of::<PictureRow>("dataset"),
        of::<ConceptRow>("dataset"),
        of::<LabelRow>("dataset"),
        ("activations", TokenRow::FILE, recorded),
        of::<LogRow>("train"),
        of::<RoutingRow>("train"),
        of::<ExpertSimilarityRow>("train"),
        of::<ValidationRow>("train"),
        of::<AssignmentRow>("cluster"),
        of::<ClusterRow>("cluster"),
        of::<IterationRow>("cluster"),
        of::<SubspaceRow>("subspaces"),
        of::<SpectrumRow>("subspaces"),
        of::<GroupRow>("multiplet"),
        of::<FitAssignmentRow>("fit"),
        of::<FitClusterRow>("fit"),
        of::<FitIterationRow>("fit"),
        of::<FitSubspaceRow>("fit"),
        of::<FitSpectrumRow>("fit"),
        of::<MetricRow>("evaluate"),
        of::<OutcomeRow>("evaluate"),
        of::<ResampleRow>("evaluate"),
        of::<PixelRow>("evaluate"),
        of::<RetrievalRow>("evaluate"),
        of::<SetMetricRow>("evaluate"),
        of::<SetResampleRow>("evaluate"),
        of::<SetRow>("evaluate"),
        of::<AnalysisRow>("analyze"),
        of::<SimilarityRow>("analyze"),
        of::<RoutedTokenRow>("analyze"),
        of::<EmbeddingRow>("analyze"),
        of::<ComparisonRow>("report"),
        of::<SetComparisonRow>("report"),
        of::<SweepRow>("report"),
    ]
}

/// The heading of a table in `docs/artifacts.md`: what varies in the name of a file stands in
/// capitals there, because `<split>` would be read as a tag of HTML.
fn heading(section: &str, file: &str) -> String {
    let parts = file.split(['<', '>']).enumerate();
    let parts: Vec<String> = parts
        .map(|(i, part)| if i % 2 == 1 { part.to_uppercase() } else { part.to_owned() })
        .collect();
    format!("### {section}/{}", parts.concat())
}

/// The columns that `docs/artifacts.md` lists under `### section/file`.
fn documented(text: &str, section: &str, file: &str) -> Columns {
    let heading = format!("{}\n", heading(section, file));
    let part = text.split(&heading).nth(1).unwrap_or_else(|| panic!("no {heading}"));
    let lines = part.lines().take_while(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|');
            let name = cells.next()?.trim().trim_end_matches('`');
            // `vector [E]` names its width, which is not part of the type.
            let kind = cells.next()?.split('[').next()?.trim();
            Some((name.to_owned(), kind.to_owned()))
        })
        .collect()
}

#[test]
fn the_documentation_lists_the_columns_of_every_row_struct_and_no_other() {
    let text = include_str!("../../docs/artifacts.md");
    for (section, file, columns) in structs() {
        assert_eq!(documented(text, section, file), columns, "{section}/{file}");
    }

    let headings = text.lines().filter(|line| line.starts_with("### "));
    for heading in headings.filter(|line| line.ends_with(".parquet")) {
        let known = structs();
        let mut known =
            known.iter().map(|(section, file, _)| self::heading(section, file));
        assert!(known.any(|name| name == heading), "{heading}");
    }
}

#[test]
fn a_missing_an_extra_and_a_changed_column_are_seen() {
    let text = "### a/b.parquet\n| column | type |\n|---|---|\n| `x` | u32 | x |\n\
                | `v` | vector [E] | v |\n\n## next\n| `y` | u32 | y |\n";
    let found = documented(text, "a", "b.parquet");
    let expected = [("x", "u32"), ("v", "vector")];
    assert_eq!(found, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
}

#[test]
fn rows_survive_their_file() {
    let folder = tempfile::tempdir().unwrap();
    let row = |step: u32| RoutingRow {
        step,
        layer: Layer::new("text", 3),
        entropy: f64::from(step) / 3.0,
        utilisation: vec![0.25, 0.75],
    };
    let rows: Vec<_> = (0..20_000).map(row).collect();
    write(&folder.path().join(RoutingRow::FILE), rows.clone()).unwrap();
    assert_eq!(read::<RoutingRow>(folder.path()).unwrap(), rows);
}

#[test]
fn a_sample_can_be_read_with_or_without_its_picture() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(SampleRow::file("train"));
    let row = |sample: u32| PictureRow {
        sample: SampleRow {
            sample,
            bytes: sample,
            captions: vec!["a".to_owned(); sample as usize],
            style: "noto".to_owned(),
            ..SampleRow::default()
        },
        image: vec![7; sample as usize],
    };
    let rows: Vec<_> = (0..5).map(row).collect();
    write(&path, rows.clone()).unwrap();

    let table = Table::read(&path).unwrap();
    assert_eq!(from_table::<PictureRow>(table.clone()).unwrap(), rows);
    let samples: Vec<_> = rows.into_iter().map(|row| row.sample).collect();
    assert_eq!(from_table::<SampleRow>(table).unwrap(), samples);

    let mut reader = TableReader::open_without(&path, Some(PictureRow::IMAGE)).unwrap();
    let part = reader.next().unwrap().unwrap();
    assert!(part.column(PictureRow::IMAGE).is_err());
    assert_eq!(from_table::<SampleRow>(part).unwrap(), samples);
}

#[test]
fn activations_survive_their_file_and_need_their_vectors() {
    let token = |sample| TokenRow { layer: Layer::new("text", 1), sample, position: 2 };
    let written = Activations {
        tokens: vec![token(3), token(4)],
        width: 3,
        inputs: vec![0.5, 1.0, 1.5, 2.0, 2.5, 3.0],
    };
    let table = written.clone().into_table().unwrap();
    assert_eq!(Activations::from_table(table.clone()).unwrap(), written);

    let mut without = table;
    without.take("x").unwrap();
    let error = Activations::from_table(without).unwrap_err();
    assert!(error.message().contains("no column x"), "{error}");
    assert_eq!(Activations::file("vision", 3), "vision-3.parquet");
}

#[test]
fn numbers_survive_json_to_the_bit() {
    let row = RoutingRow {
        entropy: f64::from_bits(0x7ff8_0000_0000_0001),
        utilisation: vec![f32::from_bits(0x3eaa_aaab), f32::NAN],
        ..RoutingRow::default()
    };
    let text = serde_json::to_string(&row).unwrap();
    let back: RoutingRow = serde_json::from_str(&text).unwrap();
    assert_eq!(back.entropy.to_bits(), row.entropy.to_bits());
    assert_eq!(back.utilisation[0].to_bits(), row.utilisation[0].to_bits());
    assert_eq!(back.utilisation[1].to_bits(), row.utilisation[1].to_bits());
}

#[test]
fn a_file_that_does_not_fit_is_named_with_its_column() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(ValidationRow::FILE);
    let table = |step: Column| {
        Table::new().with("step", step).with("metric", Column::Text(vec!["a".to_owned()]))
    };
    table(Column::U32(vec![1])).write(&path).unwrap();
    let error = format!("{:?}", read::<ValidationRow>(folder.path()).unwrap_err());
    assert!(error.contains("no column value"), "{error}");
    assert!(error.contains("validation.parquet"), "{error}");

    let whole = table(Column::F64(vec![1.0])).with("value", Column::F64(vec![0.5]));
    whole.write(&path).unwrap();
    let error = format!("{:?}", read::<ValidationRow>(folder.path()).unwrap_err());
    assert!(error.contains("column step holds f64, expected u32"), "{error}");
}

#[test]
fn vectors_of_two_widths_are_refused() {
    let row = |utilisation| RoutingRow { utilisation, ..RoutingRow::default() };
    let error = to_table(vec![row(vec![1.0]), row(vec![0.5, 0.5])]).unwrap_err();
    assert!(error.message().contains("vectors of 1 values has one of 2"), "{error}");
}

#[test]
fn the_image_tower_comes_before_the_text_tower() {
    let mut layers = [("text", 0), ("vision", 2), ("vision", 1)];
    layers.sort_by_key(|(tower, block)| Layer::new(tower, *block));
    assert_eq!(layers, [("vision", 1), ("vision", 2), ("text", 0)]);
}
