//! Clusters vectors by direction: `cargo run --release --example cluster_vectors`.

#![expect(clippy::print_stdout, reason = "an example shows what it found")]

use linfa::ParamGuard;
use upcycle::cluster::SphericalKMeans;
use upcycle::error::Result;
use upcycle::linalg::Matrix;
use upcycle::rng;

fn main() -> Result<()> {
    // 3,000 vectors of any length around four of the axes of a 16-dimensional space.
    let (n, d) = (3_000, 16);
    let mut vectors = Matrix::zeros(n, d);
    rng::fill_normal(&mut rng::stream(1, "example"), 0.5, vectors.data_mut());
    for index in 0..n {
        vectors.row_mut(index)[index % 4] += 3.0;
    }

    let params = SphericalKMeans::params(4).iterations(30).restarts(3).seed(7).check()?;
    let model = params.fit_rows(&vectors)?;

    println!("sizes {:?}", model.sizes);
    println!("mean cosine {:.6}, restart {} won", model.objective, model.restart);
    for stats in model.history.iter().filter(|stats| stats.restart == model.restart) {
        println!("  iteration {}: {:.6}", stats.iteration, stats.objective);
    }
    let (labels, cosines) = model.assign(&vectors)?;
    println!("the first vector: cluster {}, cosine {:.3}", labels[0], cosines[0]);
    Ok(())
}
