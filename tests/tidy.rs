//! House rules that the compiler cannot check; filled in by the first modules.
