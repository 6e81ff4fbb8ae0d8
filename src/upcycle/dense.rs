//! No experts: the dense model trained for the same extra steps, the first baseline.

use super::{Form, Method};

/// Method `dense`: the model stays as it is.
#[derive(Debug)]
pub struct Dense;

impl Method for Dense {
    fn name(&self) -> &'static str {
        "dense"
    }

    fn reference(&self) -> &'static str {
        "Radford et al., Learning Transferable Visual Models From Natural Language \
         Supervision, ICML 2021, https://arxiv.org/abs/2103.00020"
    }

    fn describe(&self) -> &'static str {
        "no experts: the dense model, trained for the same extra steps"
    }

    fn form(&self) -> Form<'_> {
        Form::Dense
    }
}

#[cfg(test)]
mod tests {
    use super::super::Upcycled;
    use super::super::samples::{Parts, settings, upcycle};
    use super::*;

    #[test]
    fn it_makes_no_experts() {
        let parts = Parts::new(3, 4, 2, 1);
        let made = upcycle(&Dense, &parts, &settings(&Dense, 2), 1, "text.1");
        assert_eq!(made.unwrap(), Upcycled::Dense);
    }
}
