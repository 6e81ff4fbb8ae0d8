//! What kind of file an output is, with its rows and columns: the self-check of a publication.
//!
//! Only footers and headers are read. A result is not published if its own files do not open.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use parquet::basic::LogicalType;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::schema::types::Type;

use crate::error::{Context, Error, Result};

/// Headers of tensor files beyond this are refused before anything is allocated.
const LARGEST_HEADER: u64 = 100 << 20;

/// What a file is.
#[derive(Debug, Default)]
pub(super) struct Description {
    pub(super) kind: String,
    pub(super) rows: Option<u64>,
    pub(super) schema: Option<Vec<String>>,
}

/// Opens a file as what its name says and describes it.
pub(super) fn describe(path: &Path) -> Result<Description> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("file");
    match extension {
        "parquet" => parquet_file(path),
        "safetensors" => safetensors_file(path),
        "json" => json_file(path),
        other => Ok(Description { kind: other.to_owned(), ..Description::default() }),
    }
}

/// A table by its footer.
fn parquet_file(path: &Path) -> Result<Description> {
    let failing = || format!("{} is not a readable Parquet file", path.display());
    let file = File::open(path).context(failing)?;
    let reader = SerializedFileReader::new(file).context(failing)?;

    let metadata = reader.metadata().file_metadata();
    let rows = u64::try_from(metadata.num_rows()).context(failing)?;
    let schema =
        metadata.schema().get_fields().iter().map(|field| column(field)).collect();
    Ok(Description { kind: "parquet".to_owned(), rows: Some(rows), schema: Some(schema) })
}

/// A column as `name: type`.
fn column(field: &Type) -> String {
    let name = field.name();
    match field.get_basic_info().logical_type_ref() {
        Some(LogicalType::String) => format!("{name}: text"),
        Some(LogicalType::List) => format!("{name}: list"),
        Some(LogicalType::Integer(integer)) => {
            let sign = if integer.is_signed { "i" } else { "u" };
            format!("{name}: {sign}{}", integer.bit_width)
        }
        _ if field.is_primitive() => format!("{name}: {:?}", field.get_physical_type()),
        _ => format!("{name}: group"),
    }
}

/// Tensors by the header of their file.
fn safetensors_file(path: &Path) -> Result<Description> {
    let failing = || format!("{} is not a readable safetensors file", path.display());
    let mut file = File::open(path).context(failing)?;
    let size = file.metadata().context(failing)?.len();

    // The file begins with the length of its header, eight bytes with the lowest first.
    let mut length = [0; 8];
    file.read_exact(&mut length).context(failing)?;
    let length = u64::from_le_bytes(length);
    if length > size.min(LARGEST_HEADER) {
        return Err(Error::corrupt(failing()));
    }

    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).context(failing)?;

    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&header).context(failing)?;
    let tensors = header.keys().filter(|name| *name != "__metadata__").count();
    let rows = u64::try_from(tensors).context(failing)?;
    Ok(Description { kind: "safetensors".to_owned(), rows: Some(rows), schema: None })
}

/// JSON, which is read whole to see that it is valid.
fn json_file(path: &Path) -> Result<Description> {
    let failing = || format!("{} is not valid JSON", path.display());
    let text = std::fs::read(path).context(failing)?;
    let _: serde::de::IgnoredAny = serde_json::from_slice(&text).context(failing)?;
    Ok(Description { kind: "json".to_owned(), ..Description::default() })
}
