//! Single kernels against definitions in f64, in both precisions.

use upcycle::config::Precision;
use upcycle::engine::cuda::device::{Arg, Buffer, Device, Extents, Grid, Kind, Operand};

use crate::emulator::session;
use crate::truth::{bf16, close, random, wide};

const BOTH: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// A value as a buffer of activations holds it.
fn held(device: &Device, value: f32) -> f32 {
    if device.real() == Kind::F32 { value } else { wide(bf16(value)) }
}

fn upload(device: &Device, values: &[f32]) -> Buffer {
    if device.real() == Kind::F32 {
        return device.upload(Kind::F32, values).unwrap();
    }
    let bits: Vec<u16> = values.iter().map(|v| bf16(*v)).collect();
    device.upload(Kind::Bf16, &bits).unwrap()
}

fn download(device: &Device, buffer: &Buffer) -> Vec<f32> {
    if device.real() == Kind::F32 {
        return device.download(buffer).unwrap();
    }
    let bits: Vec<u16> = device.download(buffer).unwrap();
    bits.into_iter().map(wide).collect()
}

/// Rounded as the device holds them, in f64.
fn truth(device: &Device, values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(held(device, *v))).collect()
}

/// Smaller in f32 than in bf16, which rounds results to 8 bits.
fn tolerance(device: &Device, bf16: f64) -> f64 {
    if device.real() == Kind::F32 { 2e-6 } else { bf16 }
}

/// Packed samples: queries, keys and values of `heads` heads.
struct Packed {
    starts: Vec<usize>,
    heads: usize,
    size: usize,
    causal: bool,
}

impl Packed {
    /// Outputs and the gradient of qkv, by the definition.
    fn attention(&self, qkv: &[f64], dout: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (d, scale) = (self.heads * self.size, (self.size as f64).sqrt());
        let (mut out, mut grad) = (vec![0.0; dout.len()], vec![0.0; qkv.len()]);
        for pair in self.starts.windows(2) {
            for head in 0..self.heads {
                let at = |row: usize, which: usize, j: usize| {
                    (pair[0] + row) * 3 * d + which * d + head * self.size + j
                };
                let t = pair[1] - pair[0];
                for i in 0..t {
                    let keys = if self.causal { i + 1 } else { t };
                    let dot =
                        |a: &dyn Fn(usize) -> f64, b: &dyn Fn(usize) -> f64| -> f64 {
                            (0..self.size).map(|j| a(j) * b(j)).sum()
                        };
                    let score = |k: usize| {
                        dot(&|j| qkv[at(i, 0, j)], &|j| qkv[at(k, 1, j)]) / scale
                    };
                    let powers: Vec<f64> = (0..keys).map(|k| score(k).exp()).collect();
                    let total: f64 = powers.iter().sum();
                    let p: Vec<f64> = powers.iter().map(|v| v / total).collect();
                    let g = |j: usize| dout[(pair[0] + i) * d + head * self.size + j];
                    let dp: Vec<f64> =
                        (0..keys).map(|k| dot(&g, &|j| qkv[at(k, 2, j)])).collect();
                    let along: f64 = p.iter().zip(&dp).map(|(p, d)| p * d).sum();
                    for k in 0..keys {
                        let ds = p[k] * (dp[k] - along) / scale;
                        for j in 0..self.size {
                            out[(pair[0] + i) * d + head * self.size + j] +=
                                p[k] * qkv[at(k, 2, j)];
                            grad[at(i, 0, j)] += ds * qkv[at(k, 1, j)];
                            grad[at(k, 1, j)] += ds * qkv[at(i, 0, j)];
                            grad[at(k, 2, j)] += p[k] * g(j);
                        }
                    }
                }
            }
        }
        (out, grad)
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a sequence of kernels beside its definition")]
fn attention_equals_its_definition_for_all_heads_and_lengths() {
    let Some(_session) = session() else { return };
    for precision in BOTH {
        let device = Device::open(0, precision).unwrap();
        for (lengths, heads, size, causal) in [
            (vec![1, 5, 17], 1, 64, true),
            (vec![77, 3, 64, 65], 2, 64, true),
            (vec![197, 50], 2, 64, false),
            (vec![70, 130], 2, 32, false),
            (vec![70, 1, 129], 1, 32, true),
            (vec![17, 100], 3, 16, true),
            (vec![65, 5], 2, 16, false),
        ] {
            let mut starts = vec![0];
            for length in &lengths {
                starts.push(starts.last().unwrap() + length);
            }
            let (n, d) = (*starts.last().unwrap(), heads * size);
            let (qkv, dout) = (random("qkv", n * 3 * d, 1.0), random("dout", n * d, 1.0));
            let (gpu_qkv, gpu_dout) = (upload(&device, &qkv), upload(&device, &dout));
            let ints: Vec<i32> =
                starts.iter().map(|s| i32::try_from(*s).unwrap()).collect();
            let bounds = device.upload(Kind::I32, &ints).unwrap();
            let out = device.buffer(device.real(), n * d).unwrap();
            let dqkv = device.buffer(device.real(), n * 3 * d).unwrap();
            let sums = device.buffer(Kind::F32, n * heads).unwrap();
            let delta = device.buffer(Kind::F32, n * heads).unwrap();
            let half = device.real() == Kind::Bf16;
            let tile = if half { 64 } else { 128 };
            let bytes = if half { 64 * (size + 8) * 2 } else { 0 };
            let longest = *lengths.iter().max().unwrap();
            let grid = Grid::new([longest.div_ceil(tile), heads, lengths.len()], 128);
            let scale = 1.0 / (size as f32).sqrt();
            let name = |part: &str| format!("attention_{part}_{size}");
            device
                .launch(
                    &name("forward"),
                    grid.shared(3 * bytes),
                    &[
                        (&out).into(),
                        (&sums).into(),
                        (&gpu_qkv).into(),
                        (&bounds).into(),
                        d.into(),
                        causal.into(),
                        scale.into(),
                    ],
                )
                .unwrap();
            let args = [
                (&delta).into(),
                (&gpu_dout).into(),
                (&out).into(),
                n.into(),
                heads.into(),
            ];
            let lanes = Grid::threads(n * heads * size / 8, 128);
            device.launch(&name("delta"), lanes, &args).unwrap();
            let args = [
                (&dqkv).into(),
                (&gpu_dout).into(),
                (&gpu_qkv).into(),
                (&sums).into(),
                (&delta).into(),
                (&bounds).into(),
                d.into(),
                causal.into(),
                scale.into(),
            ];
            let grid = grid.shared(4 * bytes + if half { 512 } else { 0 });
            device.launch(&name("keys"), grid, &args).unwrap();
            device.launch(&name("queries"), grid, &args).unwrap();
            let packed = Packed { starts, heads, size, causal };
            let (true_out, true_dqkv) =
                packed.attention(&truth(&device, &qkv), &truth(&device, &dout));
            let what = format!("{precision:?} {lengths:?} {size} {causal}");
            let allowed = tolerance(&device, 6e-3);
            close(&format!("out {what}"), &download(&device, &out), &true_out, allowed);
            let allowed = 2.0 * allowed;
            close(
                &format!("dqkv {what}"),
                &download(&device, &dqkv),
                &true_dqkv,
                allowed,
            );
        }
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a sequence of kernels beside its definition")]
fn norms_equal_their_definition() {
    let Some(_session) = session() else { return };
    for precision in BOTH {
        let device = Device::open(0, precision).unwrap();
        for (rows, d) in [(1, 8), (70, 96), (131, 768), (5, 1024), (300, 264)] {
            let (x, gain) = (random("x", rows * d, 2.0), random("gain", d, 1.0));
            let (offset, bias) = (random("offset", d, 1.0), random("bias", d, 1.0));
            let (added, dy) =
                (random("added", rows * d, 1.0), random("dy", rows * d, 1.0));
            let start = random("start", rows * d, 1.0);
            let float = |values: &[f32]| device.upload(Kind::F32, values).unwrap();
            let zeros = |len| device.buffer(Kind::F32, len).unwrap();
            let (gpu_x, gpu_gain) = (float(&x), float(&gain));
            let (gpu_offset, gpu_bias) = (float(&offset), float(&bias));
            let (out, mean, inverse) = (zeros(rows * d), zeros(rows), zeros(rows));
            let y = device.buffer(device.real(), rows * d).unwrap();
            let chunks = d.div_ceil(256);
            let gpu_added = upload(&device, &added);
            let args = [
                (&out).into(),
                (&y).into(),
                (&mean).into(),
                (&inverse).into(),
                (&gpu_x).into(),
                (&gpu_added).into(),
                (&gpu_bias).into(),
                (&gpu_gain).into(),
                (&gpu_offset).into(),
                rows.into(),
                d.into(),
            ];
            let name = format!("norm_forward_{chunks}");
            device.launch(&name, Grid::warps(rows), &args).unwrap();
            let (dx, copy) =
                (float(&start), device.buffer(device.real(), rows * d).unwrap());
            let blocks = rows.div_ceil(8);
            let partial = zeros(blocks * 3 * d);
            let gpu_dy = upload(&device, &dy);
            let args = [
                (&dx).into(),
                (&copy).into(),
                (&partial).into(),
                (&gpu_dy).into(),
                (&out).into(),
                (&mean).into(),
                (&inverse).into(),
                (&gpu_gain).into(),
                rows.into(),
                d.into(),
                true.into(),
            ];
            let grid = Grid::new([blocks, 1, 1], 256).shared(8 * d * 4);
            device.launch(&format!("norm_backward_{chunks}"), grid, &args).unwrap();
            let sums = zeros(3 * d);
            let args = [
                (&sums).into(),
                (&partial).into(),
                blocks.into(),
                (3 * d).into(),
                (3 * d).into(),
            ];
            let grid = Grid::new([(3 * d).div_ceil(32), 1, 1], 256);
            device.launch("sum_partials", grid, &args).unwrap();

            let (dy, added) = (truth(&device, &dy), truth(&device, &added));
            let (mut true_y, mut true_dx, mut true_sums) =
                (vec![], vec![], vec![0.0; 3 * d]);
            for row in 0..rows {
                let at = row * d;
                let x: Vec<f64> = (0..d)
                    .map(|j| f64::from(x[at + j]) + added[at + j] + f64::from(bias[j]))
                    .collect();
                let mean = x.iter().sum::<f64>() / d as f64;
                let variance =
                    x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
                let scale = 1.0 / (variance + 1e-5).sqrt();
                let n: Vec<f64> = x.iter().map(|v| (v - mean) * scale).collect();
                let g = |j: usize| dy[at + j] * f64::from(gain[j]);
                let total = (0..d).map(g).sum::<f64>() / d as f64;
                let along = (0..d).map(|j| g(j) * n[j]).sum::<f64>() / d as f64;
                for j in 0..d {
                    true_y.push(n[j] * f64::from(gain[j]) + f64::from(offset[j]));
                    let own =
                        f64::from(start[at + j]) + (g(j) - total - n[j] * along) * scale;
                    true_dx.push(own);
                    true_sums[j] += dy[at + j] * n[j];
                    true_sums[d + j] += dy[at + j];
                    true_sums[2 * d + j] += own;
                }
            }
            let what = format!("{precision:?} {rows} x {d}");
            let allowed = tolerance(&device, 4e-3);
            close(&format!("y {what}"), &download(&device, &y), &true_y, allowed);
            let dx: Vec<f32> = device.download(&dx).unwrap();
            close(&format!("dx {what}"), &dx, &true_dx, 2e-6);
            close(&format!("copy {what}"), &download(&device, &copy), &true_dx, allowed);
            let sums: Vec<f32> = device.download(&sums).unwrap();
            close(&format!("parameters {what}"), &sums, &true_sums, 5e-6);
        }
    }
}

/// Slots that the rows of an expert are rounded up to.
const ROUNDED: usize = 128;

/// Pairs sorted by expert on the device: the slot of each pair, bounds and ends.
struct Sorted {
    slots: Buffer,
    starts: Buffer,
}

fn sorted(device: &Device, chosen: &[i32], experts: usize) -> Sorted {
    let buffer = |len| device.buffer(Kind::I32, len).unwrap();
    let (pairs, chunks) = (chosen.len(), chosen.len().div_ceil(256));
    let gpu = device.upload(Kind::I32, chosen).unwrap();
    let (counts, starts) = (buffer(chunks * experts), buffer(2 * experts + 1));
    let slots = buffer(pairs);
    let grid = Grid::new([chunks, 1, 1], 256);
    let args = [(&counts).into(), (&gpu).into(), pairs.into(), experts.into()];
    device.launch("experts_count", grid, &args).unwrap();
    let args = [(&counts).into(), (&starts).into(), chunks.into(), experts.into()];
    device.launch("experts_scan", Grid::new([1, 1, 1], 1024), &args).unwrap();
    let args =
        [(&slots).into(), (&counts).into(), (&gpu).into(), pairs.into(), experts.into()];
    device.launch("experts_place", grid, &args).unwrap();
    Sorted { slots, starts }
}

/// Random choices of experts.
fn choices(pairs: usize, experts: usize) -> Vec<i32> {
    let draw = |v: f32| upcycle::num::truncate_usize(f64::from(v.abs())) % experts;
    let values = random("chosen", pairs, 40.0);
    values.into_iter().map(|v| i32::try_from(draw(v)).unwrap()).collect()
}

fn indices(values: &[i32]) -> Vec<usize> {
    values.iter().map(|n| usize::try_from(*n).unwrap()).collect()
}

#[test]
fn pairs_are_sorted_by_expert_keep_their_order_and_begin_at_whole_tiles() {
    let Some(_session) = session() else { return };
    let device = Device::open(0, Precision::F32).unwrap();
    for (pairs, experts) in [(1, 2), (255, 3), (256, 8), (9000, 32), (700, 1)] {
        let chosen = choices(pairs, experts);
        let own = sorted(&device, &chosen, experts);
        let starts = indices(&device.download::<i32>(&own.starts).unwrap());
        let (bounds, ends) = starts.split_at(experts + 1);
        let mut next = 0;
        let mut truth = vec![0; pairs];
        for e in 0..experts {
            assert_eq!(bounds[e], next, "{pairs} {experts} {e}");
            for pair in
                (0..pairs).filter(|pair| chosen[*pair] == i32::try_from(e).unwrap())
            {
                truth[pair] = next;
                next += 1;
            }
            assert_eq!(ends[e], next, "{pairs} {experts} {e}");
            next = next.next_multiple_of(ROUNDED);
        }
        assert_eq!(bounds[experts], next);
        assert_eq!(indices(&device.download::<i32>(&own.slots).unwrap()), truth);
    }
}

/// Products over an expert's slots read its rows and zeros, whatever lay there before.
#[test]
fn gathered_rows_lie_by_slot_and_padding_is_zero() {
    let Some(_session) = session() else { return };
    for precision in BOTH {
        let device = Device::open(0, precision).unwrap();
        let (tokens, k, experts, d) = (150, 2, 3, 40);
        let chosen = choices(tokens * k, experts);
        let own = sorted(&device, &chosen, experts);
        let x = random("x", tokens * d, 1.0);
        let all = tokens * k + experts * (ROUNDED - 1);
        let rows = upload(&device, &vec![f32::NAN; all * d]);
        let gpu = upload(&device, &x);
        let args = [
            (&rows).into(),
            (&gpu).into(),
            (&own.slots).into(),
            (&own.starts).into(),
            (tokens * k).into(),
            k.into(),
            d.into(),
            experts.into(),
        ];
        let grid = Grid::warps(tokens * k + experts * ROUNDED);
        device.launch("experts_gather", grid, &args).unwrap();

        let starts = indices(&device.download::<i32>(&own.starts).unwrap());
        let mut truth = vec![0.0; starts[experts] * d];
        let slots = indices(&device.download::<i32>(&own.slots).unwrap());
        for (pair, slot) in slots.into_iter().enumerate() {
            for j in 0..d {
                truth[slot * d + j] = held(&device, x[pair / k * d + j]);
            }
        }
        assert!(download(&device, &rows)[..truth.len()] == truth, "{precision:?}");
    }
}

/// Levels are normalized on the card to the bits that the CPU makes of them.
#[test]
fn levels_become_the_values_of_the_cpu() {
    use upcycle::image::Normalise;
    let Some(_session) = session() else { return };
    let device = Device::open(0, Precision::F32).unwrap();
    let (size, patch, pictures) = (32, 8, 3);
    let count = pictures * 3 * size * size;
    let levels: Vec<u8> =
        (0..count).map(|i| u8::try_from(i * 7919 / 13 % 256).unwrap()).collect();
    let normalise = Normalise::OPENAI;
    let lines: Vec<f32> =
        (0..3).flat_map(|c| [normalise.line(c).0, normalise.line(c).1]).collect();
    let mut values = vec![0.0; count];
    let picture = 3 * size * size;
    for (from, to) in levels.chunks(picture).zip(values.chunks_mut(picture)) {
        normalise.apply(from, to);
    }

    let sizes = [size, patch, pictures];
    let cut = |kernel: &str, buffers: &[&Buffer]| -> Vec<f32> {
        let out = device.buffer(Kind::F32, count).unwrap();
        let mut args = vec![(&out).into()];
        args.extend(buffers.iter().map(|own| Arg::from(*own)));
        args.extend(sizes.map(Arg::from));
        device.launch(kernel, Grid::new([5, 1, 1], 256), &args).unwrap();
        device.download(&out).unwrap()
    };
    let values = device.upload(Kind::F32, &values).unwrap();
    let (levels, lines) = (
        device.upload(Kind::U8, &levels).unwrap(),
        device.upload(Kind::F32, &lines).unwrap(),
    );
    let truth = cut("patches_cut", &[&values]);
    assert!(cut("patches_cut_levels", &[&levels, &lines]) == truth);
    assert!(truth.iter().any(|v| *v < -1.0) && truth.iter().any(|v| *v > 1.0));
}

#[test]
fn the_most_uncertain_rows_of_each_group_are_chosen_in_order() {
    let Some(_session) = session() else { return };
    let device = Device::open(0, Precision::F32).unwrap();
    let groups = [0_usize, 1, 300, 300, 1100];
    let rows = *groups.last().unwrap();
    // Rounded, so that there are ties.
    let entropy: Vec<f32> = random("entropy", rows, 1.0)
        .into_iter()
        .map(|v| (v * 8.0).round() / 8.0)
        .collect();
    let counted: Vec<i32> = (0..rows).map(|row| i32::from(row % 5 != 1)).collect();
    let (mut keep, mut offsets, mut total) = (Vec::new(), Vec::new(), 0_usize);
    let mut truth = Vec::new();
    for group in groups.windows(2) {
        let mut own: Vec<usize> =
            (group[0]..group[1]).filter(|r| counted[*r] == 1).collect();
        let count = own.len() * 2 / 5;
        own.sort_by(|a, b| entropy[*b].total_cmp(&entropy[*a]).then(a.cmp(b)));
        own.truncate(count);
        own.sort_unstable();
        keep.push(i32::try_from(count).unwrap());
        offsets.push(i32::try_from(total).unwrap());
        total += count;
        truth.extend(own.iter().map(|r| i32::try_from(*r).unwrap()));
    }
    let ints = |values: &[i32]| device.upload(Kind::I32, values).unwrap();
    let bounds = ints(&groups.map(|g| i32::try_from(g).unwrap()));
    let marked = device.buffer(Kind::I32, rows).unwrap();
    let found = device.buffer(Kind::I32, total).unwrap();
    let gpu_entropy = device.upload(Kind::F32, &entropy).unwrap();
    let [counted, keep, offsets] = [&counted, &keep, &offsets].map(|values| ints(values));
    let args = [
        (&marked).into(),
        (&gpu_entropy).into(),
        (&counted).into(),
        (&bounds).into(),
        (&keep).into(),
    ];
    device.launch("uncertain_mark", Grid::new([4, 4, 1], 256), &args).unwrap();
    let args = [(&found).into(), (&marked).into(), (&bounds).into(), (&offsets).into()];
    device.launch("uncertain_place", Grid::new([4, 1, 1], 256), &args).unwrap();
    assert_eq!(device.download::<i32>(&found).unwrap(), truth);
}

#[test]
fn products_equal_their_definition_turned_and_added() {
    let Some(_session) = session() else { return };
    for precision in BOTH {
        let device = Device::open(0, precision).unwrap();
        let (m, n, k) = (13, 24, 40);
        let (a, b) = (random("a", m * k, 1.0), random("b", n * k, 1.0));
        let start = random("start", m * n, 1.0);
        let (left, right) = (truth(&device, &a), truth(&device, &b));
        let (gpu_a, gpu_b) = (upload(&device, &a), upload(&device, &b));
        for turned in 0..4 {
            let (a_turned, b_turned) = (turned % 2 == 1, turned / 2 == 1);
            let mut x = Operand::new(gpu_a.all(), if a_turned { m } else { k });
            let mut y = Operand::new(gpu_b.all(), if b_turned { k } else { n });
            if a_turned {
                x = x.turned();
            }
            if b_turned {
                y = y.turned();
            }
            let c = device.upload(Kind::F32, &start).unwrap();
            device.gemm((c.all(), n), (x, y), Extents { m, n, k }, 1.0).unwrap();
            let mut expected = Vec::new();
            for i in 0..m {
                for j in 0..n {
                    let term = |p: usize| {
                        let a = left[if a_turned { p * m + i } else { i * k + p }];
                        a * right[if b_turned { j * k + p } else { p * n + j }]
                    };
                    expected.push(
                        f64::from(start[i * n + j]) + (0..k).map(term).sum::<f64>(),
                    );
                }
            }
            let found: Vec<f32> = device.download(&c).unwrap();
            close(&format!("{precision:?} {turned}"), &found, &expected, 1e-6);
        }
    }
}

#[test]
fn memory_that_no_buffer_uses_goes_back_to_the_card() {
    let Some(_session) = session() else { return };
    let device = Device::open(0, Precision::F32).unwrap();
    device.trim().unwrap();
    let (before, total) = device.memory().unwrap();
    assert!(before <= total);
    drop(device.buffer(Kind::F32, 1 << 24).unwrap());
    device.trim().unwrap();
    // Other programs may use the card too, hence no equality.
    assert!(device.memory().unwrap().0 + (1 << 25) > before);
}
