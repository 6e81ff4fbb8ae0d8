//! PyTorch's files: a zip archive, or the older stream of pickles, with tensors of any stride.
//!
//! Both hold the same kind of object, and candle reads it. What is added here: the dict of
//! weights is found inside of a training checkpoint, and tensors are read as they lie, so
//! that `channels_last` and other views need not be saved again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek as _, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use candle_core::pickle::{Object, TensorInfo};
use candle_core::{DType, Device};
use zip::ZipArchive;

use super::pickle::{self, MOST_BYTES};
use crate::error::{Context, Error, Result};
use crate::io::tensors::Tensor;

/// Tensors under the names of a file.
pub(super) type Named = Vec<(String, Tensor)>;

/// Entries under which training checkpoints keep the weights.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];

/// How a zip file begins.
const ZIP: &[u8] = b"PK";

/// How PyTorch's older files begin: a pickle of a number that says so.
const LEGACY: &[u8] = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.";

/// A file's object, and where its tensors keep their values.
struct Opened {
    object: Object,
    /// What stands before the names of storages.
    folder: String,
    storages: Storages,
}

/// Where a file keeps the values of its tensors.
enum Storages {
    /// Each is an entry of the archive.
    Zip(ZipArchive<BufReader<File>>),
    /// One lies behind the other: offset and length in bytes by key.
    Stream(File, BTreeMap<String, [u64; 2]>),
}

/// Reads the weights of a file, those that `wanted` accepts by name.
pub(super) fn read(path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Named> {
    // candle's reader indexes without looking, so a hostile pickle can make it panic.
    let read = catch_unwind(AssertUnwindSafe(|| read_unguarded(path, wanted)));
    read.unwrap_or_else(|_| {
        let place = path.display();
        Err(Error::corrupt(format!("{place} is not a readable PyTorch checkpoint")))
    })
}

/// [`read`], which may panic.
fn read_unguarded(path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Named> {
    let place = path.display().to_string();
    let reading = || format!("reading {place}");
    let mut file = File::open(path).context(reading)?;
    let size = file.metadata().context(reading)?.len();

    // The extension says little: .pt and .bin are used for both kinds of files.
    let mut head = Vec::new();
    file.by_ref().take(LEGACY.len() as u64).read_to_end(&mut head).context(reading)?;
    file.rewind().context(reading)?;

    let Opened { object, folder, mut storages } = if head.starts_with(ZIP) {
        of_zip(file, &place)?
    } else if head == LEGACY {
        of_stream(file, &place)?
    } else {
        return Err(Error::corrupt(format!(
            "{place} is not a PyTorch checkpoint: it is neither a zip archive nor a file of \
             PyTorch before 1.6"
        )));
    };

    // A tensor is checked against the size of the file before memory is taken for it.
    let mut named = Named::new();
    let mut total = 0_u64;
    for info in infos(state_dict(object, &place)?, &folder, &place)? {
        if !wanted(&info.name) {
            continue;
        }
        let tensor = Wanted::check(&info, size, &place)?;

        // Tied weights share storage, but not a thousand of them.
        total = total.saturating_add(tensor.bytes);
        if total > size.saturating_mul(2) {
            return Err(Error::corrupt(format!(
                "{place}: its tensors are more than twice as large as the file"
            )));
        }

        let data = tensor
            .read(&mut storages)
            .context(|| format!("{place}: reading tensor {}", info.name))?;
        named.push((info.name.clone(), Tensor::new(tensor.shape, data)?));
    }
    Ok(named)
}

/// The object of a zip archive.
fn of_zip(file: File, place: &str) -> Result<Opened> {
    let archive =
        |e| Error::corrupt(format!("{place} is not a readable zip archive")).caused_by(e);
    let mut zip = ZipArchive::new(BufReader::new(file)).map_err(archive)?;

    // The pickle lies in a folder named after the file that was saved, storages beside it.
    let (mut index, mut folder) = (None, String::new());
    let mut scripted = false;
    for at in 0..zip.len() {
        let entry = zip.by_index_raw(at).map_err(archive)?;
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        scripted |= name.ends_with("/constants.pkl");
        if let Some(stem) = name.strip_suffix("data.pkl") {
            if index.replace(at).is_some() {
                return Err(Error::corrupt(format!(
                    "{place} holds more than one data.pkl"
                )));
            }
            folder = format!("{stem}data");
        }
    }

    // TorchScript keeps code in the same kind of archive; its pickle is of another kind.
    if scripted {
        return Err(Error::failed(format!(
            "{place} is a TorchScript archive; save its weights first: \
             torch.save(torch.jit.load(path).state_dict(), new_path)"
        )));
    }
    let Some(index) = index else {
        return Err(Error::corrupt(format!("{place} holds no data.pkl")));
    };

    let entry = zip.by_index(index).map_err(archive)?;
    let bytes = limited(entry, &format!("data.pkl of {place}"))?;
    let (object, _) = pickle::read(&bytes, &format!("data.pkl of {place}"))?;
    Ok(Opened { object, folder, storages: Storages::Zip(zip) })
}

/// The object of an older file: four pickles, the list of storages, and these, each with its
/// length before it.
fn of_stream(mut file: File, place: &str) -> Result<Opened> {
    let reading = || format!("reading {place}");
    let mut bytes = Vec::new();
    file.by_ref().take(MOST_BYTES).read_to_end(&mut bytes).context(reading)?;

    // The version, facts about the system, the object itself, and the keys of its storages.
    let mut at = LEGACY.len();
    let mut next = || -> Result<Object> {
        let (object, length) = pickle::read(&bytes[at..], place)?;
        at += length;
        Ok(object)
    };
    let (_version, system, object, keys) = (next()?, next()?, next()?, next()?);

    let big = (Object::Unicode("little_endian".to_owned()), Object::Bool(false));
    if matches!(&system, Object::Dict(entries) if entries.contains(&big)) {
        return Err(Error::failed(format!(
            "{place} was written on a big-endian machine"
        )));
    }
    let Object::List(keys) = keys else {
        return Err(Error::corrupt(format!("{place} has no list of storages")));
    };

    // A storage says how many values it has; only the object says of which type they are.
    let mut widths = BTreeMap::new();
    storage_widths(&object, &mut widths);

    let mut places = BTreeMap::new();
    let mut offset = at as u64;
    for key in keys {
        let Object::Unicode(key) = key else {
            return Err(Error::corrupt(format!("{place} has a storage without a name")));
        };

        // Each storage is its number of values in eight bytes, and then the values.
        let mut count = [0; 8];
        file.seek(SeekFrom::Start(offset)).context(reading)?;
        file.read_exact(&mut count).context(reading)?;

        let width = widths.get(&key).copied().ok_or_else(|| {
            Error::failed(format!(
                "{place}: storage {key} holds values of an unknown type"
            ))
        })?;
        let length = u64::from_le_bytes(count).saturating_mul(width);
        places.insert(key, [offset + 8, length]);
        offset = offset.saturating_add(8).saturating_add(length);
    }

    let storages = Storages::Stream(file, places);
    Ok(Opened { object, folder: String::new(), storages })
}

/// Bytes of a value, by the key of its storage, of every storage that an object names.
fn storage_widths(object: &Object, widths: &mut BTreeMap<String, u64>) {
    match object {
        // ("storage", the class with the type, the key, the device, the number of values).
        Object::PersistentLoad(id) => {
            if let Object::Tuple(parts) = &**id
                && let [_, Object::Class { class_name, .. }, Object::Unicode(key), ..] =
                    parts.as_slice()
                && let Some(width) = storage_width(class_name)
            {
                widths.insert(key.clone(), width);
            }
        }

        // The walk that bounds the pickle bounds the depth of this one too.
        Object::Tuple(parts) | Object::List(parts) => {
            for part in parts {
                storage_widths(part, widths);
            }
        }
        Object::Dict(entries) => {
            for (_, value) in entries {
                storage_widths(value, widths);
            }
        }
        Object::Reduce { args, callable } | Object::Build { args, callable } => {
            storage_widths(callable, widths);
            storage_widths(args, widths);
        }
        _ => {}
    }
}

/// Bytes of a value in a storage of a class; `None` for a class that is not known.
fn storage_width(class: &str) -> Option<u64> {
    Some(match class {
        "DoubleStorage" | "LongStorage" | "ComplexFloatStorage" => 8,
        "FloatStorage" | "IntStorage" => 4,
        "HalfStorage" | "BFloat16Storage" | "ShortStorage" => 2,
        "ByteStorage" | "CharStorage" | "BoolStorage" => 1,
        _ => return None,
    })
}

/// At most [`MOST_BYTES`] of an entry.
fn limited(entry: impl Read, place: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than allowed tells a large entry from one that is just allowed.
    entry
        .take(MOST_BYTES + 1)
        .read_to_end(&mut bytes)
        .context(|| format!("reading {place}"))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(Error::corrupt(format!("{place} is larger than {MOST_BYTES} bytes")));
    }
    Ok(bytes)
}

/// The entries of a dict.
type Entries = Vec<(Object, Object)>;

/// Finds the weights: the file's dict itself, or the one inside that holds them.
fn state_dict(object: Object, place: &str) -> Result<Entries> {
    let found = find(object).map_err(|keys| {
        Error::failed(format!(
            "{place} holds tensors in several dicts ({keys}), of which any could be the \
             model: save the one that you mean by itself, as in \
             torch.save(torch.load(path)[key], new_path)"
        ))
    })?;
    found.ok_or_else(|| {
        Error::failed(format!(
            "{place} holds no state dict of tensors; save one first: \
             torch.save(model.state_dict(), path)"
        ))
    })
}

/// The dict of tensors inside of an object; an error names those that could be meant.
///
/// Dicts inside are preferred to tensors at the top, because a training checkpoint may keep
/// the state of a random generator beside its model.
fn find(object: Object) -> std::result::Result<Option<Entries>, String> {
    let Object::Dict(mut entries) = object else { return Ok(None) };

    // Where tensors lie inside, which of these places have a usual name, and whether tensors
    // lie right here.
    let mut holders: Vec<usize> = Vec::new();
    for (index, (key, value)) in entries.iter().enumerate() {
        if matches!(key, Object::Unicode(_)) && holds_tensors(value) {
            holders.push(index);
        }
    }
    let named = |index: usize| match &entries[index].0 {
        Object::Unicode(name) => name.clone(),
        _ => String::new(),
    };
    let usual: Vec<usize> = holders
        .iter()
        .copied()
        .filter(|&index| WRAPPERS.contains(&named(index).as_str()))
        .collect();
    let direct = entries.iter().any(|(_, value)| is_tensor(value));

    let chosen = match (usual.as_slice(), holders.as_slice()) {
        ([], []) => None,
        // The optimizer's state may be the only dict beside the weights themselves.
        ([], _) if direct => None,
        ([one], _) | ([], [one]) => Some(*one),
        (many, holders) => {
            let many = if many.is_empty() { holders } else { many };
            let mut names: Vec<String> = many.iter().map(|&index| named(index)).collect();
            names.sort();
            return Err(names.join(", "));
        }
    };

    match chosen {
        Some(index) => find(entries.swap_remove(index).1),
        None => Ok(direct.then_some(entries)),
    }
}

/// Whether there is a tensor under a name in a dict or in a dict inside of it.
fn holds_tensors(object: &Object) -> bool {
    let Object::Dict(entries) = object else { return false };
    let named = entries.iter().filter(|(key, _)| matches!(key, Object::Unicode(_)));
    named.into_iter().any(|(_, value)| is_tensor(value) || holds_tensors(value))
}

/// Whether an object is the call by which PyTorch builds a tensor or a parameter again.
fn is_tensor(object: &Object) -> bool {
    let Object::Reduce { callable, .. } = object else { return false };
    matches!(&**callable, Object::Class { module_name, class_name }
        if ["torch._utils", "torch._tensor"].contains(&module_name.as_str())
            && class_name.starts_with("_rebuild"))
}

/// The tensors of a state dict, by name.
fn infos(entries: Entries, folder: &str, place: &str) -> Result<Vec<TensorInfo>> {
    // In the order of names, so that an error about one does not depend on the file's order.
    let mut infos = BTreeMap::new();
    for (name, value) in entries {
        let shown =
            if let Object::Unicode(name) = &name { name.clone() } else { continue };
        let info = value.into_tensor_info(name, Path::new(folder)).map_err(|e| {
            Error::corrupt(format!("{place}: tensor {shown} cannot be read")).caused_by(e)
        })?;
        if let Some(info) = info {
            infos.insert(shown, info);
        }
    }
    Ok(infos.into_values().collect())
}

/// A tensor whose type, shape and strides were found possible.
struct Wanted<'a> {
    info: &'a TensorInfo,
    shape: Vec<usize>,
    /// Values of the storage from the first to the last that the tensor has.
    extent: usize,
    /// Bytes of the tensor's own values.
    bytes: u64,
}

impl<'a> Wanted<'a> {
    /// Refuses types that are not floats, and tensors larger than the file.
    fn check(info: &'a TensorInfo, size: u64, place: &str) -> Result<Self> {
        let name = &info.name;
        if !matches!(info.dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64) {
            let found = info.dtype;
            return Err(Error::failed(format!(
                "{place}: tensor {name} has type {found:?}, expected a float"
            )));
        }

        let (shape, strides) = (info.layout.dims().to_vec(), info.layout.stride());
        if shape.len() != strides.len() {
            return Err(Error::corrupt(format!(
                "{place}: tensor {name} has {} axes and {} strides",
                shape.len(),
                strides.len()
            )));
        }

        // Strides may make a large tensor of few values, or reach far beyond its own values:
        // neither may be larger than the file.
        let width = info.dtype.size_in_bytes();
        let bytes = shape.iter().try_fold(width, |n, &axis| n.checked_mul(axis));
        let extent = if shape.contains(&0) {
            Some(0)
        } else {
            let steps =
                shape.iter().zip(strides).map(|(n, stride)| (n - 1).checked_mul(*stride));
            steps.into_iter().try_fold(1_usize, |sum, step| sum.checked_add(step?))
        };

        let fits = |bytes: Option<usize>| bytes.filter(|&bytes| bytes as u64 <= size);
        let (Some(bytes), Some(_)) =
            (fits(bytes), fits(extent.and_then(|n| n.checked_mul(width))))
        else {
            return Err(Error::corrupt(format!(
                "{place}: tensor {name} of shape {shape:?} is larger than the file"
            )));
        };
        let extent = extent.unwrap_or_default();
        Ok(Self { info, shape, extent, bytes: bytes as u64 })
    }

    /// The values in the order of the axes.
    fn read(&self, storages: &mut Storages) -> Result<Vec<f32>> {
        let width = self.info.dtype.size_in_bytes();
        let start = self.info.layout.start_offset() as u64;
        let bytes = storages.read(&self.info.path, start, self.extent * width)?;

        let lying = candle_core::Tensor::from_raw_buffer(
            &bytes,
            self.info.dtype,
            &[self.extent],
            &Device::Cpu,
        )
        .and_then(|tensor| tensor.to_dtype(DType::F32)?.to_vec1::<f32>())
        .context(|| "its values cannot be converted".to_owned())?;
        if self.info.layout.is_contiguous() {
            return Ok(lying);
        }

        Ok(gather(&lying, &self.shape, self.info.layout.stride()))
    }
}

/// Values that lie with any strides, in the order of the axes.
fn gather(lying: &[f32], shape: &[usize], strides: &[usize]) -> Vec<f32> {
    let count = shape.iter().product();
    let mut values = Vec::with_capacity(count);
    let mut index = vec![0; shape.len()];
    let mut at = 0;

    for _ in 0..count {
        values.push(lying[at]);

        // The last axis moves first, as the digits of a counter do.
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    values
}

impl Storages {
    /// `length` bytes of a storage, from the byte `start` on.
    fn read(&mut self, path: &str, start: u64, length: usize) -> Result<Vec<u8>> {
        let short = || "the file ends before its values do".to_owned();
        let mut bytes = vec![0; length];

        match self {
            // An entry may be compressed, so what stands before the values is read and dropped.
            Self::Zip(zip) => {
                let mut entry = zip
                    .by_name(path)
                    .context(|| format!("the archive has no entry {path}"))?;
                let skipped =
                    std::io::copy(&mut entry.by_ref().take(start), &mut std::io::sink());
                skipped.context(short)?;
                entry.read_exact(&mut bytes).context(short)?;
            }

            // The values behind a storage are those of the next one, and not of this tensor.
            Self::Stream(file, places) => {
                let key = path.trim_start_matches('/');
                let [offset, whole] = places.get(key).copied().ok_or_else(|| {
                    Error::corrupt(format!("there is no storage {key}"))
                })?;
                let end = start.checked_add(length as u64);
                if end.is_none_or(|end| end > whole) {
                    return Err(Error::corrupt(format!(
                        "storage {key} has {whole} bytes, {length} from byte {start} on are \
                         asked for"
                    )));
                }
                file.seek(SeekFrom::Start(offset + start)).context(short)?;
                file.read_exact(&mut bytes).context(short)?;
            }
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_any_strides_come_in_the_order_of_the_axes() {
        let lying: Vec<f32> = (0..24_u8).map(f32::from).collect();
        assert_eq!(gather(&lying, &[2, 3, 4], &[12, 4, 1]), lying);
        // The transpose of a 2 by 3 matrix, a slice of every other column, one repeated row.
        assert_eq!(gather(&lying[..6], &[3, 2], &[1, 3]), [0., 3., 1., 4., 2., 5.]);
        assert_eq!(gather(&lying, &[2, 2], &[6, 2]), [0., 2., 6., 8.]);
        assert_eq!(gather(&lying, &[2, 2], &[0, 1]), [0., 1., 0., 1.]);
        assert_eq!(gather(&lying, &[], &[]), [0.]);
        assert!(gather(&lying, &[0, 3], &[3, 1]).is_empty());
    }
}
