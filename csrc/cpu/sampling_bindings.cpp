#include <nanobind/nanobind.h>
namespace octavo {
void bind_sampling(nanobind::module_&) {}
}
