//! Where models run and in which numbers: the keys `device` and `precision`.
//!
//! The number of a card changes no result and enters no key; the kind of device and the
//! precision do.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What runs models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// A card where there is one, else processors.
    #[default]
    Auto,
    /// Processors.
    Cpu,
    /// The card of this number.
    Cuda(usize),
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let card = text.strip_prefix("cuda:").map(str::parse);
        match (text.as_str(), card) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            (_, Some(Ok(index))) => Ok(Self::Cuda(index)),
            _ => Err(format!("found {text}, expected auto, cpu or cuda:N")),
        }
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// The numbers that models are multiplied in; weights and sums are f32 everywhere.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Brain floating point, for cards.
    Bf16,
}

/// Device and precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compute {
    /// What runs models.
    pub device: Device,
    /// The numbers they are multiplied in.
    pub precision: Precision,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_back_as_they_were_written() {
        for device in [Device::Auto, Device::Cpu, Device::Cuda(0), Device::Cuda(17)] {
            let text = String::from(device);
            assert_eq!(Device::try_from(text), Ok(device));
        }
        for bad in ["gpu", "cuda", "cuda:", "cuda:-1", "cuda:x", "CPU", ""] {
            let error = Device::try_from(bad.to_owned()).unwrap_err();
            assert!(error.contains("auto, cpu or cuda:N"), "{error}");
        }
    }
}
