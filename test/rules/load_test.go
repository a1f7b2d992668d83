// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// module is the path of the product's module; packages are written without it.
const module = "github.com/openvwire/nsm"

// listed is a package as go list tells of it.
type listed struct {
	ImportPath                         string
	Dir                                string
	Name                               string
	Export                             string // file with its export data
	Standard                           bool
	GoFiles, TestGoFiles, XTestGoFiles []string
	Imports, Deps                      []string
}

// rel is the package's path below the module, "." for its root.
func (p *listed) rel() string { return rel(p.ImportPath) }

func rel(importPath string) string {
	if importPath == module {
		return "."
	}
	return strings.TrimPrefix(importPath, module+"/")
}

// tree is the module, loaded once for all tests.
type tree struct {
	root     string
	packages []*listed          // of the module, sorted by path
	all      map[string]*listed // with dependencies, by import path
	fset     *token.FileSet

	mu     sync.Mutex
	parsed map[string]*ast.File
	types  types.Importer
}

var load = sync.OnceValues(func() (*tree, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("go", "list", "-deps", "-export",
		"-json=ImportPath,Dir,Name,Export,Standard,GoFiles,TestGoFiles,XTestGoFiles,Imports,Deps", "./...")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, &stderr)
	}
	t := &tree{root: root, all: make(map[string]*listed), fset: token.NewFileSet(), parsed: make(map[string]*ast.File)}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(listed)
		if err := d.Decode(p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		t.all[p.ImportPath] = p
		if p.ImportPath == module || strings.HasPrefix(p.ImportPath, module+"/") {
			t.packages = append(t.packages, p)
		}
	}
	slices.SortFunc(t.packages, func(a, b *listed) int { return strings.Compare(a.ImportPath, b.ImportPath) })
	t.types = importer.ForCompiler(t.fset, "gc", func(path string) (io.ReadCloser, error) {
		p := t.all[path]
		if p == nil || p.Export == "" {
			return nil, fmt.Errorf("no export data of %s", path)
		}
		return os.Open(p.Export)
	})
	return t, nil
})

// loaded returns the module.
func loaded(t *testing.T) *tree {
	t.Helper()
	tr, err := load()
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// file parses a file of the module, comments included; name is relative to the
// module or absolute.
func (tr *tree) file(t *testing.T, name string) *ast.File {
	t.Helper()
	if !filepath.IsAbs(name) {
		name = filepath.Join(tr.root, name)
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if f := tr.parsed[name]; f != nil {
		return f
	}
	f, err := parser.ParseFile(tr.fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	tr.parsed[name] = f
	return f
}

// check type-checks the sources of one package.
func (tr *tree) check(t *testing.T, p *listed) (*types.Package, []*ast.File, *types.Info) {
	t.Helper()
	var files []*ast.File
	for _, name := range p.GoFiles {
		files = append(files, tr.file(t, filepath.Join(p.Dir, name)))
	}
	info := &types.Info{Uses: make(map[*ast.Ident]types.Object), Defs: make(map[*ast.Ident]types.Object),
		Types: make(map[ast.Expr]types.TypeAndValue), Selections: make(map[*ast.SelectorExpr]*types.Selection)}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	config := types.Config{Importer: tr.types}
	pkg, err := config.Check(p.ImportPath, tr.fset, files, info)
	if err != nil {
		t.Fatal(err)
	}
	return pkg, files, info
}

// at returns where a node stands, relative to the module.
func (tr *tree) at(n ast.Node) string {
	pos := tr.fset.Position(n.Pos())
	name, err := filepath.Rel(tr.root, pos.Filename)
	if err != nil {
		name = pos.Filename
	}
	return fmt.Sprintf("%s:%d", filepath.ToSlash(name), pos.Line)
}

// generated reports whether a file was written by a generator.
func generated(f *ast.File) bool { return ast.IsGenerated(f) }

// source returns the files of the module that git knows or would add, relative
// to its root: nothing that was built or downloaded.
func (tr *tree) source(t *testing.T) []string {
	t.Helper()
	cmd := exec.Command("git", "ls-files", "-co", "--exclude-standard", "-z")
	cmd.Dir = tr.root
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("not a git checkout: %v", err)
	}
	var names []string
	for name := range strings.SplitSeq(string(out), "\x00") {
		if info, err := os.Stat(filepath.Join(tr.root, name)); name != "" && err == nil && info.Mode().IsRegular() {
			names = append(names, name)
		}
	}
	return names
}

// read returns a file's text.
func (tr *tree) read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(tr.root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
