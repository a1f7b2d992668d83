// SPDX-License-Identifier: Apache-2.0

package mux

func playRole() {}
