//! What several configurations have in common is planned, and made, once.

use std::collections::BTreeMap;

use crate::artifact::Place;
use crate::error::{Error, Result};
use crate::pipeline::Node;

/// Adds the nodes of another configuration to a plan, in an order in which they can run, and
/// returns where each of their places is now.
///
/// A node that does the same work on the same inputs as one of the plan is that one. The others
/// carry `point`, the name of the other configuration, in front of their seed.
pub(super) fn add(
    plan: &mut Vec<Node>,
    found: Vec<Node>,
    point: &str,
) -> Result<BTreeMap<Place, Place>> {
    let mut places = BTreeMap::new();
    for mut node in found {
        // Upstream nodes came first, so it is known where they are.
        for input in &mut node.inputs {
            if let Some(place) = places.get(&input.place) {
                input.place = Place::clone(place);
            }
        }

        if let Some(known) = plan.iter().find(|known| is_same(known, &node)) {
            places.insert(node.place, known.place.clone());
            continue;
        }

        let place = named(&node.place, point)?;
        if plan.iter().any(|known| known.place == place) {
            return Err(Error::failed(format!(
                "found two different nodes at {place}, expected one: two factors or runs of \
                 section sweep lead to the same name; rename one of them"
            )));
        }
        places.insert(node.place, place.clone());
        plan.push(Node { place, ..node });
    }
    Ok(places)
}

/// Whether two nodes would write the same bytes.
fn is_same(a: &Node, b: &Node) -> bool {
    // What is read from outside follows from parameters and paths.
    let work = |node: &Node| (node.stage, node.backend);
    work(a) == work(b)
        && a.params == b.params
        && a.inputs == b.inputs
        && a.paths == b.paths
}

/// A place under the name of a point: `paper-s1` becomes `paper@tau-0.9-s1`, and `s1`, of a
/// stage whose runs have no names, `@tau-0.9-s1`.
fn named(place: &Place, point: &str) -> Result<Place> {
    let run = place.run.as_deref().ok_or_else(|| {
        Error::usage(format!(
            "the value {point} of section sweep changes what the stage {} makes, which all \
             runs share; expected assignments to keys of later stages only",
            place.stage
        ))
    })?;
    let at = run.rfind("-s").unwrap_or(0);
    let (name, seed) = run.split_at(at);
    let seed = seed.trim_start_matches('-');
    Ok(Place::new(place.stage.clone(), Some(format!("{name}@{point}-{seed}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_stands_between_the_name_and_the_seed() {
        let of = |run: &str| {
            let place = Place::new("train", Some(run.to_owned()));
            named(&place, "tau-0.9").unwrap().run.unwrap()
        };
        assert_eq!(of("paper-s1"), "paper@tau-0.9-s1");
        assert_eq!(of("cluster-aware-sane-s12"), "cluster-aware-sane@tau-0.9-s12");
        assert_eq!(of("s1"), "@tau-0.9-s1");
        let error = named(&Place::new("dataset", None), "size-48").unwrap_err();
        assert!(error.to_string().contains("which all runs share"), "{error}");
    }
}
