//! The weights of one FFN, `W2 act(W1 x + b1) + b2`: one type, borrowed or owned.
//!
//! A model hands out the weights of a layer, methods turn them into experts, subspaces and
//! analyses read them. None of those rooms may know the others, so what they exchange stands
//! below all of them. It knows no layer, no tower and no activation.
//!
//! All tensors are flat and row-major: cutting a layer out of a model copies nothing.

/// The four tensors of an FFN, or of the FFNs of E experts, stacked: borrowed, owned or
/// written to, as `T` says.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FfnParts<T> {
    /// W1 [h, d].
    pub fc1: T,
    /// b1 `[h]`.
    pub fc1_bias: T,
    /// W2 [d, h].
    pub fc2: T,
    /// b2 `[d]`.
    pub fc2_bias: T,
}

/// The borrowed weights of one FFN, dense or an expert.
pub type FfnTensors<'a> = FfnParts<&'a [f32]>;

/// The owned weights of one FFN: an expert that a method has made.
pub type Ffn = FfnParts<Vec<f32>>;

impl FfnTensors<'_> {
    /// Width d.
    pub fn width(&self) -> usize {
        self.fc2_bias.len()
    }

    /// Hidden width h.
    pub fn hidden(&self) -> usize {
        self.fc1_bias.len()
    }

    /// A copy of all four tensors.
    pub fn copied(&self) -> Ffn {
        Ffn {
            fc1: self.fc1.to_vec(),
            fc1_bias: self.fc1_bias.to_vec(),
            fc2: self.fc2.to_vec(),
            fc2_bias: self.fc2_bias.to_vec(),
        }
    }
}

impl Ffn {
    /// The weights, borrowed.
    pub fn tensors(&self) -> FfnTensors<'_> {
        FfnTensors {
            fc1: &self.fc1,
            fc1_bias: &self.fc1_bias,
            fc2: &self.fc2,
            fc2_bias: &self.fc2_bias,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_follow_from_the_biases_and_a_copy_is_equal() {
        let owned = Ffn {
            fc1: vec![1.0; 6],
            fc1_bias: vec![2.0; 3],
            fc2: vec![3.0; 6],
            fc2_bias: vec![4.0; 2],
        };
        let tensors = owned.tensors();
        assert_eq!((tensors.width(), tensors.hidden()), (2, 3));
        assert_eq!(tensors.copied(), owned);
    }
}
