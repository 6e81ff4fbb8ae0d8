//! The kernels' signatures, read from their source: what a launch is checked against.

use std::collections::BTreeMap;

use super::kind::Kind;

/// What a kernel expects in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parameter {
    /// A pointer to activations, f32 or bf16.
    Real,
    /// A pointer to values of a fixed kind.
    Values(Kind),
    /// An int.
    I32,
    /// A float.
    F32,
    /// A double.
    F64,
}

/// The parameters of every kernel by name; of a family such as `norm_forward_3`, by what
/// stands before the number.
#[derive(Debug)]
pub(super) struct Signatures(BTreeMap<String, Vec<Parameter>>);

impl Signatures {
    /// Reads `KERNEL(threads) name(type name, ..)` wherever it stands.
    ///
    /// # Panics
    /// If a parameter has a type that no launch can pass.
    pub(super) fn parse(sources: &[&str]) -> Self {
        let mut found = BTreeMap::new();
        for source in sources {
            // The definition of KERNEL itself is the one in a line of the preprocessor.
            let lines = source.lines().filter(|line| !line.starts_with("#define KERNEL"));
            let text = lines.collect::<Vec<_>>().join(" ").replace('\\', " ");

            for kernel in text.split("KERNEL(").skip(1) {
                let Some((_, rest)) = kernel.split_once(')') else { continue };
                let Some((name, rest)) = rest.split_once('(') else { continue };
                let Some((list, _)) = rest.split_once(')') else { continue };

                // A family's macro pastes a number behind `##`.
                let name = name.split("##").next().unwrap_or_default().trim();
                found.insert(name.to_owned(), list.split(',').map(parameter).collect());
            }
        }
        Self(found)
    }

    /// The parameters of a kernel.
    ///
    /// # Panics
    /// If there is no such kernel.
    pub(super) fn of(&self, name: &str) -> &[Parameter] {
        let family = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let found = self.0.get(name).or_else(|| self.0.get(family));
        found.unwrap_or_else(|| panic!("there is no kernel {name}"))
    }
}

fn parameter(text: &str) -> Parameter {
    let text = text.trim().trim_start_matches("const ");
    match text.rsplit_once(' ').map_or(text, |(kind, _)| kind.trim()) {
        "real*" => Parameter::Real,
        "float*" => Parameter::Values(Kind::F32),
        "double*" => Parameter::Values(Kind::F64),
        "int*" => Parameter::Values(Kind::I32),
        "unsigned char*" => Parameter::Values(Kind::U8),
        "int" => Parameter::I32,
        "float" => Parameter::F32,
        "double" => Parameter::F64,
        other => panic!("a kernel's parameter has the type {other}"),
    }
}
