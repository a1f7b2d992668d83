// SPDX-License-Identifier: Apache-2.0

// Package ref assembles parts of the reference implementation
// (github.com/networkservicemesh/sdk) for tests: a memory registry, a manager,
// a pass-through forwarder, an endpoint and a client, each with the chain
// elements and the order its published commands use, each in this process,
// over plaintext or over SPIFFE mutual TLS with the default OPA policies.
//
// A test puts one of our parts between them and sees whether both sides agree.
// The forwarder has no data plane: it negotiates mechanisms and passes file
// descriptors, which is all that the wire protocol can see.
package ref
