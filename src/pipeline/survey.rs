//! Which nodes are up to date, without running any.
//!
//! The key of a node needs the digests of what it reads, so the survey follows the plan
//! upstream. Every upstream node is found by the key *it should have*, and not by where
//! `current` points: a stage can therefore never read a result that the configuration does not
//! ask for, and a dry run sees through results that exist already. A node that waits for an
//! upstream run does not have a key yet, and the survey says so instead of guessing.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Externals, Files, Node, Stage, Upstream, source};
use crate::artifact::{
    Brief, Digest, Expected, External, Input, Inputs, Place, Preimage, Reason, Stat,
    State, Store, section,
};
use crate::error::{Error, Result};

/// Raised by hand when a change outside of `src/stage/<stage>.rs` and the modules it uses
/// changes results: all results are stale then.
const FRAMEWORK_VERSION: u32 = 1;

/// What a run of a node would do.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Nothing.
    Fresh,
    /// Point `current` at a result that exists.
    Reusable(Vec<String>),
    /// Run, for these reasons.
    Runs(Vec<String>),
    /// Run because its result is damaged.
    Damaged(Vec<String>),
    /// It depends on what this upstream node will write.
    Waits(Place),
    /// It cannot run: what is missing.
    Blocked(String),
}

/// A node with everything its key is made of.
#[derive(Debug)]
pub struct Resolved {
    /// Place, preimage and key.
    pub expected: Expected,
    /// Concrete upstream directories.
    pub inputs: Inputs,
    /// Files from outside with their stats.
    pub externals: Vec<(External, Stat)>,
}

/// How closely a node is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Depth {
    /// As upstream of another: the manifest is believed, outside files are not looked at.
    Recorded,
    /// Itself: outside files count.
    Full,
}

/// Why a node has no key.
#[derive(Debug, Clone)]
enum Unresolved {
    Waits(Place),
    Blocked(String),
}

/// What a node reads from outside the store.
#[derive(Debug, Default)]
struct Outside {
    /// The files with their stats; none where the digests are taken from a manifest.
    files: Vec<(External, Stat)>,
    /// The digests of the files, by name.
    digests: BTreeMap<String, Digest>,
}

type Resolution = std::result::Result<Arc<Resolved>, Unresolved>;

/// The state of all nodes of a plan.
#[derive(Debug)]
pub struct Survey<'a> {
    store: &'a Store,
    stages: &'a [Stage],
    nodes: BTreeMap<&'a Place, &'a Node>,
    known: RefCell<BTreeMap<(&'a Place, Depth), Resolution>>,
}

impl<'a> Survey<'a> {
    /// A survey of `nodes` in `store`.
    pub fn new(store: &'a Store, stages: &'a [Stage], nodes: &'a [Node]) -> Self {
        let nodes = nodes.iter().map(|node| (&node.place, node)).collect();
        Self { store, stages, nodes, known: RefCell::default() }
    }

    /// What a run of the node would do.
    ///
    /// # Errors
    /// Where a file of the store cannot be read. That the node cannot run is no error here.
    pub fn verdict(&self, node: &'a Node) -> Result<Verdict> {
        let resolved = match self.resolution(node, Depth::Full) {
            Ok(resolved) => resolved,
            Err(Unresolved::Waits(place)) => return Ok(Verdict::Waits(place)),
            Err(Unresolved::Blocked(why)) => return Ok(Verdict::Blocked(why)),
        };

        let expected = &resolved.expected;
        Ok(match self.store.check(expected)? {
            State::Fresh => Verdict::Fresh,
            State::Reusable => Verdict::Reusable(lines(&self.store.reason(expected))),
            State::Stale(reason) => Verdict::Runs(lines(&reason)),
            State::Damaged(what) => Verdict::Damaged(what),
        })
    }

    /// The node's key and inputs; an error that says what to do if there are none.
    pub fn resolve(&self, node: &'a Node) -> Result<Arc<Resolved>> {
        self.resolution(node, Depth::Full).map_err(|why| match why {
            Unresolved::Waits(up) => {
                let (place, stage) = (&node.place, node.stage);
                Error::failed(format!(
                    "{place} needs {up}, which is not up to date; `make {stage}` builds both"
                ))
            }
            Unresolved::Blocked(why) => Error::failed(format!("{}: {why}", node.place)),
        })
    }

    /// The key and inputs of a node, worked out once.
    fn resolution(&self, node: &'a Node, depth: Depth) -> Resolution {
        let question = (&node.place, depth);
        if let Some(known) = self.known.borrow().get(&question) {
            return known.clone();
        }

        // The borrow has ended: working this one out asks for those upstream.
        let resolution = self.work_out(node, depth).map(Arc::new);
        self.known.borrow_mut().insert(question, resolution.clone());
        resolution
    }

    /// Makes the key of a node from what it reads.
    fn work_out(
        &self,
        node: &'a Node,
        depth: Depth,
    ) -> std::result::Result<Resolved, Unresolved> {
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for upstream in &node.inputs {
            inputs.push(self.input(upstream)?);
        }
        let inputs = Inputs::new(inputs);
        let Outside { files: externals, digests } = self.outside(node, depth)?;

        // Everything that may change a byte of the result, and nothing else.
        let stage = self.stages.iter().find(|stage| stage.name == node.stage);
        let version = stage.map_or(0, |stage| stage.version);
        let preimage = Preimage {
            stage: node.stage.to_owned(),
            version: version + 1000 * FRAMEWORK_VERSION,
            source: source::of_stage(node.stage, node.backend).to_owned(),
            formats: source::formats()
                .iter()
                .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
                .collect(),
            backend: node.backend.to_owned(),
            params: node.params.clone(),
            inputs: inputs
                .iter()
                .map(|i| (i.name.clone(), Arc::clone(&i.files)))
                .collect(),
            externals: digests,
        };
        let expected = Expected::new(node.place.clone(), preimage);
        Ok(Resolved { expected, inputs, externals })
    }

    /// The result an upstream node should have, if it has it.
    fn input(&self, upstream: &Upstream) -> std::result::Result<Input, Unresolved> {
        let blocked = |e: &Error| Unresolved::Blocked(e.chain());
        let waits = || Unresolved::Waits(upstream.place.clone());
        let node = self.nodes.get(&upstream.place).copied().ok_or_else(|| {
            Unresolved::Blocked(format!("{} is not in the plan", upstream.place))
        })?;

        // The key that it should have, and not the one that `current` points to.
        let resolved = self.resolution(node, Depth::Recorded)?;
        let Expected { place, key, .. } = &resolved.expected;

        // The upstream stage reports and repairs a damaged manifest; for us there is none.
        let Ok(Some(brief)) = self.store.brief(place, key) else { return Err(waits()) };
        let files = select(&brief, upstream).map_err(|e| blocked(&e))?;
        Ok(Input {
            name: upstream.name.clone(),
            place: place.clone(),
            key: key.clone(),
            dir: self.store.dir(place, key),
            files,
        })
    }

    /// Files from outside and their digests. Of an upstream node the recorded digests do, if
    /// there are any: whether its files changed is its own question.
    fn outside(
        &self,
        node: &Node,
        depth: Depth,
    ) -> std::result::Result<Outside, Unresolved> {
        if depth == Depth::Recorded
            && let Some(digests) = self.recorded_externals(node)
        {
            return Ok(Outside { files: Vec::new(), digests });
        }

        let look = || {
            let listed = node.externals.list()?;
            let found = self.store.externals(&listed)?;

            let mut outside = Outside::default();
            for (external, (stat, digest)) in listed.into_iter().zip(found) {
                outside.digests.insert(external.name.clone(), digest);
                outside.files.push((external, stat));
            }
            Ok(outside)
        };
        look().map_err(|e: Error| Unresolved::Blocked(e.chain()))
    }

    /// The digests of outside files that the current result was made from, if it was made
    /// from files of the same names.
    fn recorded_externals(&self, node: &Node) -> Option<BTreeMap<String, Digest>> {
        if matches!(node.externals, Externals::None) {
            return Some(BTreeMap::new());
        }

        let key = self.store.current(&node.place)?;
        let manifest = self.store.manifest(&node.place, &key).ok()??;
        let recorded: BTreeMap<String, Digest> =
            section(&manifest.key_preimage, "externals")?
                .iter()
                .map(|(name, digest)| {
                    Some((name.clone(), Digest::parse(digest.as_str()?)?))
                })
                .collect::<Option<_>>()?;

        // Names of a folder or of a table are not looked up here: that is what costs time.
        match &node.externals {
            Externals::Files(files) => {
                let same = files.len() == recorded.len()
                    && files.iter().all(|file| recorded.contains_key(&file.name));
                same.then_some(recorded)
            }
            Externals::Folder(..) | Externals::Pairs(..) => Some(recorded),
            Externals::None => None,
        }
    }
}

/// The digests of the files a reader may read.
fn select(brief: &Brief, upstream: &Upstream) -> Result<Arc<BTreeMap<String, Digest>>> {
    let Files::Listed(listed) = upstream.files else {
        return Ok(Arc::clone(&brief.files));
    };

    let file = |name: &&str| match brief.files.get(*name) {
        Some(digest) => Ok(((*name).to_owned(), digest.clone())),
        None => Err(Error::failed(format!("{} has no file {name}", upstream.place))),
    };
    listed.iter().map(file).collect::<Result<_>>().map(Arc::new)
}

/// A reason as people read it, one line for each change.
fn lines(reason: &Reason) -> Vec<String> {
    match reason {
        Reason::First => vec!["first run".to_owned()],
        Reason::Changed(changes) if changes.is_empty() => {
            vec!["its result was removed".to_owned()]
        }
        Reason::Changed(changes) => changes.iter().map(ToString::to_string).collect(),
    }
}

/// Reasons on one line, the first few of many.
pub fn one_line(reasons: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = reasons.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match reasons.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
