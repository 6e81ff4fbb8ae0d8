//! Parquet files as other programs write them, good and damaged.

use std::collections::BTreeMap;
use std::path::Path;

use arrow::array::{
    BinaryArray, BooleanArray, Float64Array, Int64Array, ListBuilder, NullArray,
    StringArray, StringBuilder, StructArray,
};
use parquet::arrow::ArrowWriter;
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::super::tests::collected;
use super::*;
use crate::config::{DatasetConfig, Overrides, Source, load_default};
use crate::image::{Picture, encode_png};

fn config(place: &Path) -> DatasetConfig {
    let mut config = load_default(&Overrides::default()).unwrap().dataset;
    config.source = Source::Parquet;
    config.folder = place.display().to_string();
    config.image_size = 8;
    config
}

fn pngs(n: u8) -> Vec<Vec<u8>> {
    (0..n).map(|i| encode_png(&Picture::filled(9, 7, [i, 2, 3])).unwrap()).collect()
}

fn structs(pngs: &[Vec<u8>]) -> ArrayRef {
    let bytes: BinaryArray = pngs.iter().map(Some).collect();
    let path: StringArray = pngs.iter().map(|_| Some("x.png")).collect();
    let field = |name: &str, kind| Arc::new(Field::new(name, kind, true));
    Arc::new(StructArray::from(vec![
        (field("bytes", DataType::Binary), Arc::new(bytes) as ArrayRef),
        (field("path", DataType::Utf8), Arc::new(path) as ArrayRef),
    ]))
}

fn write(path: &Path, columns: Vec<(&str, ArrayRef)>, metadata: Option<&str>) {
    write_as(Compression::SNAPPY, path, columns, metadata);
}

fn write_as(
    codec: Compression,
    path: &Path,
    columns: Vec<(&str, ArrayRef)>,
    metadata: Option<&str>,
) {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
        .collect();
    let metadata = metadata.map(|m| ("huggingface".to_owned(), m.to_owned()));
    let metadata: BTreeMap<String, String> = metadata.into_iter().collect();
    let schema = Arc::new(Schema::new(fields).with_metadata(metadata));
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).unwrap();
    let properties = WriterProperties::builder()
        .set_compression(codec)
        .set_max_row_group_row_count(Some(3))
        .build();
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, schema, Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn pictures_with_a_list_of_captions_are_read_over_row_groups() {
    let base = tempfile::tempdir().unwrap();
    let mut lists = ListBuilder::new(StringBuilder::new());
    for i in 0..7 {
        lists.values().append_value(format!(" caption {i} "));
        if i % 2 == 0 {
            lists.values().append_value("another");
        }
        lists.append(true);
    }
    let columns = vec![
        ("url", Arc::new(StringArray::from(vec!["u"; 7])) as ArrayRef),
        ("image", structs(&pngs(7))),
        ("captions", Arc::new(lists.finish())),
    ];
    write(&base.path().join("train-00000-of-00001.parquet"), columns, None);
    let (found, skipped) = collected(&config(base.path())).unwrap();
    assert!(skipped.is_empty());
    assert_eq!(found.samples.len(), 7);
    assert_eq!(found.samples[2].captions, ["caption 2", "another"]);
    assert_eq!(found.samples[3].captions, ["caption 3"]);
    assert!(found.samples.iter().all(|s| s.split == "train" || s.split == "val"));
    for (index, sample) in found.samples.iter().enumerate() {
        let picture = crate::image::decode(&sample.png.read().unwrap(), "x").unwrap();
        assert_eq!(usize::from(picture.rgb[0]), index);
    }
}

#[test]
fn numbers_of_classes_are_named_by_the_schema_or_a_file() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("train.parquet");
    let bytes: BinaryArray = pngs(3).iter().map(Some).collect();
    let labels = Int64Array::from(vec![Some(1), Some(0), Some(5)]);
    let columns = || {
        vec![
            ("img", Arc::new(bytes.clone()) as ArrayRef),
            ("label", Arc::new(labels.clone()) as ArrayRef),
        ]
    };
    let names = r#"{"info": {"features": {"img": {"_type": "Image"},
        "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}"#;
    write(&path, columns(), Some(names));
    let mut config = config(base.path());
    let error = collected(&config).unwrap_err().to_string();
    assert!(error.contains("row 2: class 5 is none of the 2"), "{error}");
    config.corrupt_share = 0.4;
    let (found, _) = collected(&config).unwrap();
    let captions: Vec<_> = found.samples.iter().map(|s| s.captions[0].as_str()).collect();
    assert_eq!(captions, ["dog", "cat"]);
    write(&path, columns(), None);
    let error = format!("{:?}", collected(&config).unwrap_err());
    assert!(error.contains("classnames.txt"), "{error}");
    std::fs::write(base.path().join(CLASSES), "a\nb\nc\nd\ne\nf\n").unwrap();
    let (found, _) = collected(&config).unwrap();
    assert_eq!(found.samples[2].captions, ["f"]);
    assert_eq!(super::super::open(&config).unwrap().unwrap().files().len(), 2);
}

#[test]
fn columns_of_another_type_or_name_are_refused_by_name() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("a.parquet");
    let numbers = || Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef;
    let texts = || Arc::new(StringArray::from(vec!["a", "b"])) as ArrayRef;
    let mut config = config(base.path());
    for (columns, caption, why) in [
        (vec![("image", texts()), ("text", texts())], "", "no column of the image"),
        (
            vec![("image", structs(&pngs(2))), ("x", texts())],
            "",
            "no column of the caption",
        ),
        (vec![("image", structs(&pngs(2))), ("text", numbers())], "", "expected text"),
        (vec![("image", structs(&pngs(2))), ("text", texts())], "x", "no column x"),
    ] {
        write(&path, columns, None);
        caption.clone_into(&mut config.columns.caption);
        let error = format!("{:?}", collected(&config).unwrap_err());
        assert!(error.contains(why) && error.contains("a.parquet"), "{error}");
    }
}

#[test]
fn every_codec_of_other_writers_is_read() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("train.parquet");
    for codec in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::ZSTD(ZstdLevel::default()),
    ] {
        let captions = Arc::new(StringArray::from(vec!["a picture"; 7])) as ArrayRef;
        let columns = vec![("image", structs(&pngs(7))), ("text", captions)];
        write_as(codec, &path, columns, None);
        let (found, skipped) = collected(&config(base.path())).unwrap();
        assert_eq!((found.samples.len(), skipped.len()), (7, 0), "{codec:?}");
    }
}

#[test]
fn a_codec_that_is_not_supported_is_not_damage_whatever_is_tolerated() {
    let base = tempfile::tempdir().unwrap();
    let captions = Arc::new(StringArray::from(vec!["a picture"; 2])) as ArrayRef;
    let columns = vec![("image", structs(&pngs(2))), ("text", captions)];
    let path = base.path().join("train.parquet");
    write(&path, columns, None);
    // In the footer, the field of a column's codec stands between a list and a count: number 4
    // of 32 bits, then number 5 of 64 bits. LZO is 3, written as 6.
    let mut bytes = std::fs::read(&path).unwrap();
    let places: Vec<usize> =
        (0..bytes.len() - 2).filter(|&i| bytes[i..i + 3] == [0x15, 0x02, 0x16]).collect();
    assert!(!places.is_empty());
    for place in places {
        bytes[place + 1] = 6;
    }
    std::fs::write(&path, &bytes).unwrap();
    let mut config = config(base.path());
    for share in [0.0, 1.0] {
        config.corrupt_share = share;
        let error = format!("{:?}", collected(&config).unwrap_err());
        assert!(error.contains("LZO") && error.contains("not supported"), "{error}");
        assert!(error.contains("train.parquet") && !error.contains("damaged"), "{error}");
    }
    // An encrypted file says so by its last bytes.
    let end = bytes.len() - 4;
    bytes[end..].copy_from_slice(b"PARE");
    std::fs::write(&path, &bytes).unwrap();
    let error = format!("{:?}", collected(&config).unwrap_err());
    assert!(error.contains("encrypted") && error.contains("train.parquet"), "{error}");
}

#[test]
fn a_label_that_nobody_asked_for_is_left_alone_where_there_are_captions() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("train.parquet");
    let captions = || Arc::new(StringArray::from(vec!["one", "two"])) as ArrayRef;
    let numbers = Arc::new(Int64Array::from(vec![1, 0])) as ArrayRef;
    let mut lists = ListBuilder::new(StringBuilder::new());
    (0..2).for_each(|_| lists.append(true));
    for label in [
        Arc::new(Float64Array::from(vec![0.5, 1.5])) as ArrayRef,
        Arc::new(BooleanArray::from(vec![true, false])),
        Arc::new(NullArray::new(2)),
        Arc::new(lists.finish()),
    ] {
        let columns = |label: &ArrayRef| {
            let label = ("label", Arc::clone(label));
            vec![("image", structs(&pngs(2))), ("text", captions()), label]
        };
        write(&path, columns(&label), None);
        let mut config = config(base.path());
        let (found, _) = collected(&config).unwrap();
        assert_eq!(found.samples.len(), 2, "{:?}", label.data_type());
        assert_eq!(found.concepts[0].label, "one");
        // One that fits beside one that does not.
        let both = [columns(&label), vec![("class", Arc::clone(&numbers))]].concat();
        write(&path, both, None);
        assert_eq!(collected(&config).unwrap().0.samples.len(), 2);
        // Asked for, or alone, it has to fit.
        config.columns.label = "label".to_owned();
        let error = format!("{:?}", collected(&config).unwrap_err());
        assert!(error.contains("expected numbers or text"), "{error}");
        config.columns.label.clear();
        let alone = vec![("image", structs(&pngs(2))), ("label", Arc::clone(&label))];
        write(&path, alone, None);
        assert!(collected(&config).is_err());
    }
}

#[test]
fn rows_without_a_picture_are_bad_and_no_damage_makes_it_panic() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("train.parquet");
    let mut all = pngs(20);
    all[4].clear();
    all[5].truncate(20);
    let captions = Arc::new(StringArray::from(vec!["a picture"; 20])) as ArrayRef;
    write(&path, vec![("image", structs(&all)), ("text", captions)], None);
    let mut config = config(base.path());
    config.corrupt_share = 0.1;
    let (found, skipped) = collected(&config).unwrap();
    assert_eq!((found.samples.len(), skipped.len()), (18, 2));
    assert_eq!(skipped[0].key, "train.parquet row 4");
    config.corrupt_share = 1.0;
    let bytes = std::fs::read(&path).unwrap();
    for place in (0..bytes.len()).step_by(211) {
        std::fs::write(&path, &bytes[..place]).unwrap();
        let _ = collected(&config);
        let mut flipped = bytes.clone();
        flipped[place] ^= 0x55;
        std::fs::write(&path, &flipped).unwrap();
        let _ = collected(&config);
    }
}
