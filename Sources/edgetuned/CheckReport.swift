// What a check has found, what it has done about it, and how it says so.
import EdgeWire
import Foundation

struct CheckReport {
    struct Finding: Encodable {
        enum Kind: String, Encodable {
            /// To know, and nothing to do.
            case note
            /// Of work that was cut off; nothing is lost with it.
            case leftover
            case damage
        }
        let kind: Kind
        /// "blob sha256:…", "checkpoint step-000000012.ckpt of j-…"
        let subject: String
        let detail: String
        /// What the check did, when it did something.
        var done: String?
    }

    /// Things that were looked at.
    struct Counts: Encodable {
        var jobs = 0
        var models = 0
        var datasets = 0
        var blobs = 0
        var blobBytes: UInt64 = 0
        var checkpoints = 0
        var adapters = 0
    }

    let state: String
    var checked = Counts()
    var findings: [Finding] = []
    /// Where things were moved to.
    var quarantine: String?

    var damaged: Int { findings.filter { $0.kind == .damage }.count }

    mutating func add(_ kind: Finding.Kind, _ subject: String, _ detail: String, done: String? = nil) {
        findings.append(Finding(kind: kind, subject: subject, detail: detail, done: done))
    }

    /// Control characters in a damaged name would move a terminal's cursor.
    private static func printable(_ text: String) -> String {
        String(String.UnicodeScalarView(text.unicodeScalars.map { $0.value < 32 || $0.value == 127 ? "?" : $0 }))
    }

    var text: String {
        var lines = findings.map { finding in
            Self.printable(
                "\(finding.kind.rawValue): \(finding.subject): \(finding.detail)"
                    + (finding.done.map { "; \($0)" } ?? ""))
        }
        lines.append(
            "checked \(checked.jobs) jobs, \(checked.models) models, \(checked.datasets) data sets, \(checked.blobs) blobs "
                + "(\(checked.blobBytes >> 20) MiB), \(checked.checkpoints) checkpoints, \(checked.adapters) adapters: "
                + (damaged == 0 ? "nothing is damaged" : "\(damaged) damaged"))
        if let quarantine { lines.append("moved aside to \(quarantine)") }
        if damaged > 0, quarantine == nil, findings.contains(where: { $0.kind == .damage && $0.done == nil }) {
            lines.append("edgetuned check --repair moves aside what is damaged and mends what can be mended")
        }
        return lines.joined(separator: "\n")
    }

    var json: String {
        get throws {
            struct Report: Encodable {
                let state: String, checked: Counts, findings: [Finding], damaged: Int, quarantine: String?
            }
            return String(
                decoding: try Wire.encoder().encode(
                    Report(state: state, checked: checked, findings: findings, damaged: damaged, quarantine: quarantine)),
                as: UTF8.self)
        }
    }
}
