// The job file: YAML that a user writes.
//
// Claims: no text traps or makes the parser expand it; every refusal is a YAMLProblem or an InvalidRequest that says something;
// a file that is read goes over the wire and comes back equal; the heap holds at most 1,024 bytes for each byte of the file
// (libyaml's events and Yams' nodes); time is linear, for there are no aliases.
import EdgeWire
import EdgeYAML
import Foundation

extension FuzzTarget {
    static let jobFile = FuzzTarget(
        name: "job-file", longestInput: 2048, heap: HeapClaim(bytesPerByte: 1024, fixedBytes: 512 << 10),
        errors: [YAMLProblem.self, InvalidRequest.self]
    ) { bytes in
        let request = try JobFile.read(text: String(decoding: bytes, as: UTF8.self), fileName: "job.yaml")
        try request.validate()
        let sent = try Wire.encoder().encode(request)
        let received = try BodyKeys.job.decode(JobRequest.self, sent)
        try BrokenClaim.unless(received == request, "the daemon gets what the file says")
    }
}
