//! Pictures and drawings: bombs by header and by content, and files cut anywhere.

use crate::targets::Target;
use crate::{refusal, survives};

fn crc(bytes: &[u8]) -> [u8; 4] {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum().to_be_bytes()
}

fn chunk(kind: [u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [&kind[..], data].concat();
    let length = u32::try_from(data.len()).unwrap();
    [&length.to_be_bytes()[..], &body, &crc(&body)].concat()
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut writer =
        flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

/// A PNG of this size whose pixels are `data`, unpacked.
fn png(width: u32, height: u32, more: &[Vec<u8>], data: &[u8]) -> Vec<u8> {
    let header =
        [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    bytes.extend(chunk(*b"IHDR", &header));
    bytes.extend(more.concat());
    bytes.extend(chunk(*b"IDAT", &packed(data)));
    bytes.extend(chunk(*b"IEND", &[]));
    bytes
}

#[test]
fn pictures_cut_anywhere_are_refused_or_read() {
    let target = Target::named("picture");
    let folder = target.folder();
    for seed in (target.seeds)() {
        // A format without an end, as PNM, may be whole although bytes are missing behind it.
        for length in (0..seed.len()).step_by(1 + seed.len() / 400) {
            let _ = target.run(folder.path(), &seed[..length]);
        }
        assert!(target.run(folder.path(), &seed[..20]).is_err());
    }
}

#[test]
fn bombs_are_refused_by_their_headers() {
    for (width, height) in
        [(60_000, 60_000), (u32::MAX, 1), (1, u32::MAX), (0, 5), (5, 0)]
    {
        refusal("picture", &png(width, height, &[], &[]));
    }
    let webp = |width: u32, height: u32| {
        let size =
            [&[0_u8; 4], &width.to_le_bytes()[..3], &height.to_le_bytes()[..3]].concat();
        let body = [b"VP8X", &10_u32.to_le_bytes()[..], &size].concat();
        let length = u32::try_from(4 + body.len()).unwrap();
        [b"RIFF", &length.to_le_bytes()[..], b"WEBP", &body].concat()
    };
    refusal("picture", &webp(0xff_ffff, 0xff_ffff));
    let jpeg = |height: u16, width: u16| {
        let size = [&[8][..], &height.to_be_bytes(), &width.to_be_bytes()].concat();
        let frame =
            [&b"\xff\xc0\0\x11"[..], &size, b"\x03\x01\x11\0\x02\x11\x01\x03\x11\x01"];
        [&b"\xff\xd8"[..], &frame.concat(), b"\xff\xd9"].concat()
    };
    refusal("picture", &jpeg(65_500, 65_500));
}

#[test]
fn bombs_in_the_content_are_borne() {
    // More pixels than the header says, packed a thousandfold.
    let zeros = vec![0; 64 << 20];
    survives("picture", &png(4, 4, &[], &zeros));
    // A text and a color profile that unpack to 64 MiB.
    let text = chunk(*b"zTXt", &[&b"k\0\0"[..], &packed(&zeros)].concat());
    let profile = chunk(*b"iCCP", &[&b"k\0\0"[..], &packed(&zeros)].concat());
    survives("picture", &png(1, 1, &[text, profile], &[0; 4]));
    // Pictures so thin that squares of them would be huge.
    let thin = png(1, 60_000, &[], &vec![0; 4 * 60_000]);
    survives("picture", &thin);
}

fn svg(body: &str) -> Vec<u8> {
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 64 64">{body}</svg>"#
    )
    .into_bytes()
}

#[test]
fn drawings_that_grow_are_refused() {
    let entities: String = (1..12)
        .map(|i| format!("<!ENTITY a{i} '{}'>", format!("&a{};", i - 1).repeat(10)))
        .collect();
    let laughs = format!(
        "<!DOCTYPE svg [<!ENTITY a0 'xxxxxxxxxx'>{entities}]><svg xmlns=\"http://www.w3.org/2000/svg\"><text>&a11;</text></svg>"
    );
    refusal("drawing", laughs.as_bytes());
    let doubling = |count: usize| -> String {
        (1..count)
            .map(|i| {
                let before = i - 1;
                format!("<g id=\"g{i}\"><use xlink:href=\"#g{before}\"/><use xlink:href=\"#g{before}\"/></g>")
            })
            .collect()
    };
    let uses = format!("<rect id=\"g0\" width=\"9\" height=\"9\"/>{}", doubling(60));
    refusal("drawing", &svg(&uses));
    let nested = "<g opacity=\".9\">".repeat(100_000) + &"</g>".repeat(100_000);
    refusal("drawing", &svg(&nested));
    let paths = "<path d='M0 0h9'/>".repeat(2_000_000);
    refusal("drawing", &svg(&paths));
}

#[test]
fn drawings_that_take_their_time_are_refused_or_drawn() {
    let patterns: String = (1..40)
        .map(|i| {
            let before = i - 1;
            format!(
                "<pattern id=\"p{i}\" width=\"1\" height=\"1\" patternUnits=\"userSpaceOnUse\"><rect width=\"1\" height=\"1\" fill=\"url(#p{before})\"/><rect width=\".5\" height=\"1\" fill=\"url(#p{before})\"/></pattern>"
            )
        })
        .collect();
    for body in [
        // A line of a billion dashes.
        r##"<path d="M0 0h64" stroke="#000" stroke-dasharray="0.0000001"/>"##.to_owned(),
        r##"<path d="M0 0h1e30" stroke="#000" stroke-width="1e20" stroke-dasharray="1e-6 1e-9"/>"##
            .to_owned(),
        // Filters over huge regions.
        r#"<filter id="f" x="-1e9" y="-1e9" width="1e9" height="1e9"><feGaussianBlur stdDeviation="1e9"/><feMorphology operator="dilate" radius="1e9"/><feTurbulence numOctaves="1000000"/></filter><rect width="64" height="64" filter="url(#f)"/>"#
            .to_owned(),
        format!("{patterns}<rect width=\"64\" height=\"64\" fill=\"url(#p39)\"/>"),
        // A reference to itself.
        r##"<g id="a"><use xlink:href="#a"/></g>"##.to_owned(),
        r#"<mask id="m" mask="url(#m)"><rect width="9" height="9"/></mask><rect mask="url(#m)" width="9" height="9"/>"#
            .to_owned(),
        r#"<clipPath id="c" clip-path="url(#c)"><rect width="9" height="9"/></clipPath><rect clip-path="url(#c)" width="9" height="9"/>"#
            .to_owned(),
        format!("<path d=\"M0 0{}\" stroke=\"red\"/>", "a9 9 0 1 1 .1 .1".repeat(60_000)),
        format!("<style>{}</style><rect class=\"a\"/>", "*>*>*>*{fill:red}".repeat(3_000)),
        r#"<image xlink:href="file:///etc/passwd" width="9" height="9"/>"#.to_owned(),
    ] {
        let start = std::time::Instant::now();
        survives("drawing", &svg(&body));
        let seconds = start.elapsed().as_secs();
        assert!(seconds < 10, "{seconds} s for {}", &body[..body.len().min(150)]);
    }
}
