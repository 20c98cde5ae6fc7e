// The kernel sets of both architectures on emulated cores, old and new: Tests/EmulatedKernels/run.sh.
import EdgeTestSupport
import Foundation
import Testing

struct EmulatedKernelsTests {
    @Test("every kernel set agrees with portable on emulated cores, and none runs on a core without its instructions")
    func emulatedCores() async throws {
        let script = TestModel.repositoryRoot + "/Tests/EmulatedKernels/run.sh"
        // It takes minutes, and others have deadlines.
        let result = try await onOwnThread { try Command.run("/usr/bin/nice", ["/bin/bash", script]) }
        print(result.text)
        #expect(result.code == 0, "\(result.text)")
        // What must have run: an exit status alone would also be 0 if the script lost its list.
        for core in ["Nehalem", "Haswell", "cortex-a53", "cortex-a76", "max"] {
            #expect(result.text.contains("-cpu \(core)"), "\(core)")
        }
        for set in ["neon", "neon+dotprod", "neon+i8mm+bf16", "avx2"] {
            #expect(result.text.contains("\(set): "), "\(set)")
        }
    }
}
