//! No experts: the dense model trained for the same extra steps, the first baseline.

use super::{DenseFfn, Evidence, Experts, Method, Needs, Parameter, Settings, Streams};
use crate::error::{Error, Result};

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

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[]
    }

    fn is_dense(&self) -> bool {
        true
    }

    fn experts(
        &self,
        _dense: &DenseFfn,
        _evidence: &Evidence<'_>,
        _settings: &Settings,
        streams: &Streams<'_>,
    ) -> Result<Experts> {
        let place = streams.place();
        Err(Error::failed(format!(
            "{place}: method dense makes no experts; copy the model"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Parts, settings};
    use super::super::upcycle_layer;
    use super::*;

    #[test]
    fn asking_it_for_experts_is_an_error() {
        let parts = Parts::new(3, 4, 2, 1);
        let streams = Streams::new(1, "text.1");
        let settings = settings(&Dense, 2);
        let made =
            upcycle_layer(&Dense, &parts.dense, &parts.evidence(), &settings, &streams);
        assert!(made.unwrap_err().message().starts_with("text.1: method dense"));
    }
}
