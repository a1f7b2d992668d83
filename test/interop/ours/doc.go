// SPDX-License-Identifier: Apache-2.0

// Package ours assembles our parts as package ref does the reference's: a
// registry, a manager, a forwarder and an endpoint, each of one constructor of
// the product, in this process, over plaintext or over SPIFFE mutual TLS with
// the product's own policies.
//
// Over plaintext tokens have no audience, so everybody is believed. With mutual
// TLS those are trusted who are named, as with 'nsm manager --forwarders
// --managers' and 'nsm registry --managers': nothing in the reference's
// identities says what they are.
package ours
